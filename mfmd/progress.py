"""What is waited for, told on stderr by whoever has asked for it: the commands do; a library that is called says nothing.

    with progress.told():                                                          # a command
        for structure in progress.over(structures, "predicting", "structures"):    # anywhere below
            ...

In a terminal a wait of more than two seconds is a bar, which is gone when it is over. Elsewhere, as in the log of a batch system, it is a line after a
minute, and then every minute or more rarely.
"""

import contextlib
import sys
import time

PATIENCE = 2.0  # s, of a wait that gets no bar
FIRST, SELDOM = 60.0, 600.0  # s between lines of a log: at the beginning, and at most
OFTEN = 0.25  # s between changes of a bar

_teller = None  # class of the tasks that are told of, by `told`


class Task:
    """Something that is waited for, and told to nobody.

    what : in a few words, such as "stage dft"; total : how much there is to do, None where that is not known; unit : of what; done : before it begins
    """

    def __init__(self, what, unit="", total=None, done=0):
        self.what, self.unit, self.total = what, unit, total
        self.began, self.first, self.done, self.words = time.monotonic(), done, done, ""

    def advance(self, number=1):
        """So much more is done."""
        self.reach(self.done + number)

    def reach(self, done, words=None):
        """So much is done, and what else there is to say of it."""
        self.done = done
        self.words = self.words if words is None else words
        self.tell(time.monotonic())

    def tell(self, now):
        pass

    def end(self):
        pass

    def __str__(self):
        """Such as "12/60 epochs, 3 min left, loss 0.1"."""
        done = "" if not self.unit else f"{int(self.done):,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"
        made, left = self.done - self.first, ""
        if self.total is not None and made > 0 and self.done < self.total:
            left = f"{_in_words((time.monotonic() - self.began) * (self.total - self.done) / made)} left"
        return ", ".join(filter(None, (done, left, self.words)))


class _Line(Task):
    """Told in lines of a log."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.next = self.began + FIRST

    def tell(self, now):
        if now >= self.next:
            self.next = now + min(max(FIRST, 0.1 * (now - self.began)), SELDOM)
            print(f"{self.what}: {self}", file=sys.stderr, flush=True)


def _bars():
    """The class of tasks that are bars of a terminal, and the rich.progress.Progress that draws them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    class Patient(Progress):
        def get_renderables(self):
            yield self.make_tasks_table([task for task in self.tasks if task.elapsed >= PATIENCE])

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[said]}", markup=False),
    )
    drawn = Patient(*columns, console=Console(stderr=True), refresh_per_second=4, transient=True, redirect_stdout=sys.stdout.isatty())

    class Bar(Task):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self.next = self.began
            self.id = drawn.add_task(self.what, total=self.total, completed=self.done, said="")

        def tell(self, now):
            if now >= self.next:
                self.next = now + OFTEN
                drawn.update(self.id, completed=self.done, said=str(self))

        def end(self):
            drawn.remove_task(self.id)
            if time.monotonic() - self.began >= PATIENCE:
                drawn.refresh()  # before something else is printed there

    return Bar, drawn


@contextlib.contextmanager
def told():
    """What is waited for within is told on stderr."""
    global _teller
    before, drawn = _teller, contextlib.nullcontext()
    if sys.stderr.isatty():
        _teller, drawn = _bars()
    else:
        _teller = _Line
    try:
        with drawn:
            yield
    finally:
        _teller = before


@contextlib.contextmanager
def task(what, unit="", total=None, done=0):
    """A Task, for as long as it lasts."""
    one = (_teller or Task)(what, unit, total, done)
    try:
        yield one
    finally:
        one.end()


def over(items, what, unit, total=None):
    """The items one by one; total : how many there are, by default as many as they say themselves, if they do."""
    with task(what, unit, len(items) if total is None and hasattr(items, "__len__") else total) as one:
        for item in items:
            yield item
            one.advance()


def _in_words(seconds):
    """Such as "40 s", "3 min" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"
