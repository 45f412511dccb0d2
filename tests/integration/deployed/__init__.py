"""Tests that share one deployment: a package, so that pytest stops it when it leaves this folder, and no test after
these runs beside idle engines."""
