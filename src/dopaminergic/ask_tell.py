"""Ask and tell: train where the loss is computed elsewhere, for example by a simulator.

    ask -> weights of a trial, with its number;  tell(number, outcome) -> a step, once all are told

The optimizer stays as it is. A closure that answers with NaN finds out the weights of the next
trials, and such a step is taken back. Once their outcomes are told, another closure answers by
them, so the step is that of an ordinary closure, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dopaminergic import trial_states
from dopaminergic.answers import Answer, digest, form_of, read_answer
from dopaminergic.checks import number as checked_number
from dopaminergic.dopamine import Dopamine2
from dopaminergic.optimizer import ForwardOptimizer
from dopaminergic.outcomes import mean_loss
from dopaminergic.plain import brief, number_of
from dopaminergic.scalar_rule import ScalarRule
from dopaminergic.start_weights import StartWeights
from dopaminergic.trials import AllAskedError, Best, Replay, Trial, make_optimizer, most_at_once

REMEMBERED = 4096  # trials of earlier steps whose answers are compared with repeated ones


class AskTell:
    """An optimizer for a black box that is not a Python function.

    Answers may come in any order, from any thread. A step is made once all of its trials are told.
    `Dopamine2` asks for 2 trials a step, for example. `VectorDopamine` asks for 1, for K, and for 1
    that checks the step.

    A simulator often answers in jumps, so give `sigma`: a tenth of a typical weight.

    Args:
        start: the weights to start from: a numpy array, a list or dict of arrays, parameter groups,
            or parameters or a model of torch. Parameters of torch are trained in place, all else is
            copied. They are float32 or float64.
        optimizer: a class of this library, or a function that makes an optimizer of parameters.
        timeout: seconds after which `ask` gives a trial again that no answer came to; None: never.
        settings: of the optimizer.

    Attributes:
        optimizer: it counts steps, and its `lr` may be changed between steps.

    Raises:
        TypeError: an argument is of the wrong type, or the optimizer cannot be used so.
        ValueError: an argument is out of range.

    >>> import numpy as np
    >>> asker = AskTell(np.ones(3), sigma=0.01, seed=1)
    >>> for _ in range(400):
    ...     number, weights = asker.ask()
    ...     counted = asker.tell(number, np.square(weights).sum())
    >>> bool(np.square(asker.weights).sum() < 0.1)
    True
    """

    def __init__(
        self,
        start: Any,
        optimizer: Callable[..., ForwardOptimizer] = Dopamine2,
        *,
        timeout: float | None = None,
        **settings: Any,
    ) -> None:
        if timeout is not None:
            timeout = checked_number("AskTell", "timeout", timeout, above=0)
        self._timeout = timeout
        self._start = StartWeights(start)
        self.optimizer = make_optimizer(optimizer, self._start, settings)
        self._lock = threading.RLock()
        self._first = 0  # number of the first trial of this step
        self._trials: list[list[np.ndarray]] = []  # of this step
        self._answers: dict[int, Answer] = {}  # to trials of this step
        self._asked: set[int] = set()  # trials of this step that somebody was given
        self._since: dict[int, float] = {}  # when the trials were given that are out
        self._step = 0  # number of this step
        self._remembered: dict[int, int] = {}  # digests of answers to trials of earlier steps
        self._best: tuple[int, float, list[np.ndarray]] | None = None

    # ---- trials ----------------------------------------------------------------------------------

    def ask(self, count: int | None = None) -> Any:
        """Weights to try, as a `Trial` of a number and weights.

        Args:
            count: None: one trial. A number k: a list of at most k trials, fewer where the step has
                no more; it may be empty.

        Raises:
            RuntimeError: one trial was asked for, and all of this step are out.
            TypeError: `count` is no int.
            ValueError: `count` is below 1.
        """
        if count is not None:
            wanted = number_of(count)
            if not isinstance(wanted, int):
                raise TypeError(f"AskTell.ask: count must be an int >= 1, got {brief(count)}")
            if wanted < 1:
                raise ValueError(f"AskTell.ask: count must be >= 1, got {brief(count)}")
        with self._lock:
            self._advance()
            free = [n for n in self._untold() if self._is_free(n)][: count or 1]
            if count is None and not free:
                raise RuntimeError(
                    f"AskTell.ask: all trials of this step are out ({brief(self.missing)}); tell "
                    "an outcome first, or forget(number) one that is lost and ask again"
                )
            now = time.monotonic()
            for n in free:
                self._asked.add(n)
                self._since[n] = now
            found = [Trial(n, self._start.shaped(self._trials[n - self._first])) for n in free]
        return found if count is not None else found[0]

    def tell(self, number: int, outcome: Any) -> bool:
        """Answer a trial; the last answer of a step makes the step.

        Args:
            number: of the trial.
            outcome: its loss as a number, losses of samples as a 1-d array or list, or
                `squared_error(prediction, target)` or `cross_entropy(logits, labels)`. A loss that
                is not finite skips the step, as the rule says.

        Returns:
            Whether the answer counts. False: it is a repeated one, or of a step that is over.

        Raises:
            TypeError: the outcome is no loss, or the number no int.
            ValueError: no such trial was asked, the answer contradicts an earlier one, or it has
                another form than the others of a step of `VectorDopamine`.
        """
        n = _trial_number("tell", number)
        with self._lock:
            if n >= self._first and n not in self._asked:
                raise ValueError(
                    f"AskTell.tell: trial {brief(n)} was never asked; tell the number that ask() "
                    f"gave, the open ones are {brief(self.missing)}"
                )
            answer = read_answer(outcome, n)
            if self._is_repeated(n, answer, outcome) or n < self._first:
                return False
            self._check_form(n, answer)
            self._answers[n] = answer
            self._since.pop(n, None)
            self._note_best(n, answer)
            if not self._untold():
                self._advance()
            return True

    def forget(self, number: int) -> None:
        """Let `ask` give a trial again, whose answer is lost; a late answer still counts.

        Args:
            number: of the trial; one that is told already stays so.

        Raises:
            TypeError: it is no int.
            ValueError: no such trial was asked.
        """
        n = _trial_number("forget", number)
        with self._lock:
            if n >= self._first and n not in self._asked:
                raise ValueError(
                    f"AskTell.forget: trial {brief(n)} was never asked; the open ones are "
                    f"{brief(self.missing)}"
                )
            self._since.pop(n, None)

    def restart(self) -> None:
        """Drop the trials of this step, and ask for them anew under other numbers.

        This is needed after a setting such as `sigma`, or the weights, changed within a step.
        """
        with self._lock:
            self._go_on()

    @property
    def missing(self) -> list[int]:
        """Numbers of trials that somebody was given and nobody has told yet."""
        with self._lock:
            return sorted(self._asked - self._answers.keys())

    @property
    def weights(self) -> Any:
        """The weights that the steps have led to, in the form of the start; a copy."""
        with self._lock:
            return self._start.shaped(self._start.now())

    @property
    def best(self) -> Best:
        """The trial with the least finite loss.

        Raises:
            RuntimeError: no finite loss was told yet.
        """
        if self._best is None:
            raise RuntimeError(
                "AskTell.best: no finite loss was told yet, so no trial is the best; tell some "
                "first, and see `weights` for those to start from"
            )
        n, loss, arrays = self._best
        return Best(n, loss, self._start.shaped(arrays))

    # ---- saving and loading ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue bit for bit, also in the middle of a step.

        The weights are in it. `torch.load(weights_only=True)` reads it.
        """
        with self._lock:
            return trial_states.save(
                self.optimizer.state_dict(),
                self._start.now(),
                trial_states.Told(self._first, self._answers, self._remembered, self._best),
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where another `AskTell` of the same kind and shapes stopped.

        Trials without an answer are asked again. Their late answers count, so stop the workers of a
        run that went on after it was saved.

        Raises:
            ValueError: the state is of another kind, or damaged; nothing has changed then.
        """
        with self._lock:
            weights = self._start.now()
            arrays, told = trial_states.load(state_dict, self.optimizer, weights)
            before, optimizer = self.__dict__.copy(), self.optimizer.state_dict()
            try:
                self._continue(state_dict["optimizer"], arrays, told)
            except BaseException:
                self.__dict__.update(before)
                self.optimizer.load_state_dict(optimizer)
                self._start.write(weights)
                raise

    def _continue(
        self, optimizer: dict[str, Any], arrays: list[np.ndarray], told: trial_states.Told
    ) -> None:
        self.optimizer.load_state_dict(optimizer)
        self._start.write(arrays)
        self._first, self._answers, self._remembered, self._best = told
        self._trials, self._since = [], {}
        self._advance()
        numbers = {self._first + i for i in range(len(self._trials))}
        if not numbers >= self._answers.keys():
            raise ValueError(
                f"AskTell.load_state_dict: the state answers trials {brief(list(self._answers))}, "
                f"and its step has {brief(list(numbers))}; it is damaged, load another copy"
            )
        self._asked = numbers

    def __getstate__(self) -> dict[str, Any]:
        # A lock and times belong to this process.
        return {key: x for key, x in self.__dict__.items() if key != "_lock"} | {"_since": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # ---- a step ----------------------------------------------------------------------------------

    def _untold(self) -> list[int]:
        numbers = range(self._first, self._first + len(self._trials))
        return [n for n in numbers if n not in self._answers]

    def _is_free(self, n: int) -> bool:
        since = self._since.get(n)
        if since is None:
            return True
        return self._timeout is not None and time.monotonic() - since > self._timeout

    def _advance(self) -> None:
        """Make steps and find trials, until there are some without an answer."""
        if self._trials and self._step != self.optimizer.progress.step:
            self._go_on()  # the step was made, and an interruption came before that was noted
        self._step = self.optimizer.progress.step
        while not self._untold():
            told = [self._answers[self._first + i] for i in range(len(self._trials))]
            one_wave = bool(told) and isinstance(self.optimizer, ScalarRule)
            found = [] if one_wave else self._look_ahead(told)
            if found:
                self._trials += found
                continue
            self.optimizer.step(Replay(self._start, self._trials, told, 0))
            self._go_on()
            self._step = self.optimizer.progress.step

    def _look_ahead(self, told: list[Answer]) -> list[list[np.ndarray]]:
        """The weights of the trials that can be asked now; nothing has changed afterwards."""
        before = self._start.now()
        replay = Replay(self._start, self._trials, told, most_at_once(self.optimizer, told))
        try:
            with self.optimizer.unheard():
                self.optimizer.probe(replay)
        except AllAskedError:
            pass
        finally:
            # Gaussian directions are taken back up to rounding only, where weights are many.
            self._start.write(before)
        return replay.found

    def _go_on(self) -> None:
        """Let the next trial begin a step."""
        self._remembered |= {n: digest(answer) for n, answer in self._answers.items()}
        self._first += len(self._trials)
        while len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._trials, self._answers, self._asked, self._since = [], {}, set(), {}

    def _is_repeated(self, n: int, answer: Answer, given: Any) -> bool:
        """Whether a trial was told before; raise if it was told otherwise."""
        seen = digest(self._answers[n]) if n in self._answers else self._remembered.get(n)
        if seen is not None and seen != digest(answer):
            raise ValueError(
                f"AskTell.tell: trial {n} was answered otherwise before, now by {brief(given)}; "
                "the first answer stays, so tell each trial once"
            )
        return seen is not None

    def _check_form(self, n: int, answer: Answer) -> None:
        """Raise if `VectorDopamine` could not compare an answer with the first of its step."""
        if not self._answers or isinstance(self.optimizer, ScalarRule):
            return
        first, found = form_of(self._answers[self._first]), form_of(answer)
        if first != found:
            raise ValueError(
                f"AskTell.tell: trial {n} is answered by {found}, and the first trial of the step "
                f"by {first}; tell the same samples for all trials of a step"
            )

    def _note_best(self, n: int, answer: Answer) -> None:
        loss = mean_loss(answer, "AskTell")
        if np.isfinite(loss) and (self._best is None or loss < self._best[1]):
            self._best = (n, loss, self._trials[n - self._first])


def _trial_number(method: str, number: Any) -> int:
    found = number_of(number)
    if not isinstance(found, int):
        raise TypeError(
            f"AskTell.{method}: number must be the int that ask() gave, got {brief(number)}"
        )
    if found < 0:
        raise ValueError(f"AskTell.{method}: number must be >= 0, got {brief(number)}")
    return found
