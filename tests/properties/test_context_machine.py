"""Whatever engines do in whatever order, tokens enter a context's log exactly once and in order."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.contexts.context import Context, Verdict, request_id_of

TOKENS = st.lists(st.integers(0, 9), max_size=4)


class ContextMachine(RuleBasedStateMachine):
    """Legs come, speak, end, are lost and speak again late; the model keeps the log that must result."""

    def __init__(self) -> None:
        super().__init__()
        self.context = Context(request_id="r#1", num_prompt_tokens=3, max_tokens=100)
        self.log: list[int] = []
        self.current: str | None = None
        self.older: list[str] = [self.context.leg_id]
        self.epochs = [0]
        self.finished = False

    def _retire(self) -> None:
        if self.current is not None:
            self.older.append(self.current)
        self.current = None

    @precondition(lambda self: not self.finished)
    @rule(replica=st.sampled_from("abc"), ahead=st.none() | st.integers(1, 5))
    def begin(self, replica: str, ahead: int | None) -> None:
        """Also while a leg runs: its engine was lost, or the context is moved away."""
        self._retire()
        handoff = None if ahead is None else len(self.log) + ahead
        self.current = self.context.begin_leg(replica, handoff_at_tokens=handoff)
        self.epochs.append(self.context.epoch)
        assert self.current not in self.older
        assert self.context.replica_id == replica
        assert self.context.handoff_at_tokens == handoff

    @precondition(lambda self: self.current is not None)
    @rule(tokens=TOKENS)
    def speak(self, tokens: list[int]) -> None:
        assert self.current is not None
        verdict = self.context.accept(self.current, tokens, ended=False, kv_kept=False)
        assert verdict is Verdict.CONTINUES
        self.log += tokens

    @precondition(lambda self: self.current is not None)
    @rule(tokens=TOKENS, kv_kept=st.booleans())
    def end(self, tokens: list[int], kv_kept: bool) -> None:
        assert self.current is not None
        verdict = self.context.accept(self.current, tokens, ended=True, kv_kept=kv_kept)
        assert verdict is (Verdict.HANDS_OFF if kv_kept else Verdict.FINISHED)
        self.log += tokens
        self.finished = not kv_kept
        self._retire()

    @rule(data=st.data(), tokens=TOKENS, ended=st.booleans(), kv_kept=st.booleans())
    def speak_late(self, data: st.DataObject, tokens: list[int], ended: bool, kv_kept: bool) -> None:
        leg = data.draw(st.sampled_from(self.older))
        assert self.context.accept(leg, tokens, ended=ended, kv_kept=kv_kept) is Verdict.FENCED

    @rule(tokens=TOKENS, ended=st.booleans())
    def speak_of_another(self, tokens: list[int], ended: bool) -> None:
        assert self.context.accept("other#1", tokens, ended=ended, kv_kept=False) is Verdict.FENCED

    @rule()
    def abandon(self) -> None:
        self.context.abandon()
        self.finished = True
        self._retire()

    @invariant()
    def log_is_exact(self) -> None:
        assert self.context.output_token_ids == self.log
        assert self.context.num_tokens == 3 + len(self.log)

    @invariant()
    def epochs_rise(self) -> None:
        assert self.epochs == list(range(len(self.epochs)))

    @invariant()
    def state_is_the_models(self) -> None:
        assert self.context.finished == self.finished
        assert (self.context.replica_id is None) == (self.current is None)
        assert request_id_of(self.context.leg_id) == "r#1"


TestContext = ContextMachine.TestCase
