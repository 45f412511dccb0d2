"""The page's style sheet: readable in light and dark, on a screen and on paper."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1a1d21; --soft: #59626d; --grid: #e4e7eb; --edge: #d4d9df;
  --a: #2563c9; --b: #b4540f; --c: #1f7a4d; --d: #7b3fb5; --bad: #c01f2e; --goal: #0f7d74; --event: #7a4d00;
  --during: #f2c14e33; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #121518; --card: #1b2025; --ink: #e7eaed; --soft: #9ca6b1; --grid: #262d34; --edge: #333c45;
  --a: #72a7ff; --b: #f29a5b; --c: #5fcb93; --d: #c495f5; --bad: #ff7480; --goal: #4fd0c3; --event: #e8b45a;
  --during: #f2c14e22; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 960px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 34px 0 6px; }
p { margin: 4px 0; } .soft, figcaption { color: var(--soft); font-size: 13px; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: 2px 10px; border-radius: 5px; color: var(--paper); font-weight: 600; }
.verdict.met { background: var(--c); } .verdict.missed, .verdict.invalid { background: var(--bad); }
.verdict.none { background: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 10px; margin: 16px 0 4px; }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: 7px; padding: 9px 12px; }
.tile b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 6px 0; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.words, th.words { text-align: left; white-space: normal; }
figure { margin: 10px 0 16px; } figcaption b { color: var(--ink); font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 4px 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
.pair svg text { font-size: 11.5px; }
.grid { stroke: var(--grid); fill: none; } .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.dots { fill: none; stroke-width: 3.4; stroke-linecap: round; stroke-opacity: 0.75; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); } .d { stroke: var(--d); }
.bad { stroke: var(--bad); } .goal { stroke: var(--goal); } .event { stroke: var(--event); }
svg .word { stroke: var(--paper); stroke-width: 3px; paint-order: stroke; fill: var(--goal); }
svg .word.event { fill: var(--event); }
.wide { overflow-x: auto; } .wide svg { min-width: 640px; }
details summary { cursor: pointer; }
.fill { stroke: none; fill-opacity: 0.6; }
.fill.a { fill: var(--a); } .fill.b { fill: var(--b); } .fill.c { fill: var(--c); }
.fill.d { fill: var(--d); } .fill.bad { fill: var(--bad); } .during { fill: var(--during); }
.key { display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 10px; vertical-align: middle; }
.key.a { background: var(--a); } .key.b { background: var(--b); } .key.c { background: var(--c); }
.key.d { background: var(--d); } .key.bad { background: var(--bad); }
.warn { color: var(--event); } .fault { color: var(--bad); font-weight: 600; }
@media print { body { max-width: none; } figure, .tile, tr { break-inside: avoid; } }
"""
