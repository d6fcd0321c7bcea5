"""What a node keeps of the keys of a keyed stage, by *buckets* of keys.

A message, state and a timer of a node are of one key, and each message costs as much as thirty items. With a message for each key of the flow, a
source that reads a thousand items of a thousand keys makes a thousand of them. So keys share a fixed number of buckets, by their hash, and a
bucket is what the node knows as a key: a message carries the values of all its keys that a batch has.

Fixed, since whoever sends must know a key's bucket without asking. Not the 256 groups that nodes move keys by: a bucket's state is bounded, and
more buckets hold more; nor many thousands, which would bring back a message for each key.

A node reads all of a bucket with its message, but an instance takes over, unpickles and writes only pages that have a key of the message:

=========== ==================================================================================================================
value       holds
=========== ==================================================================================================================
``state``   the head: version, number of pages, whether some keys are still to be told their end, when the timer is set for; of each page
            its size and when its first key is due (ms since 1970, 0: none). Behind it the page, where there is only one
``page.I``  pages, where there are several, in powers of two as the bucket grows: ``{key: state}``, ``{key: due}``, where ``TOLD`` is no time
``D.I``     a state that is too large for a page, under the digest of its key
``rest.I``  values that came, and are not worked on: what they change would be more than one input may write
=========== ==================================================================================================================

The end of a bucket's stream is that of each of its keys. A key that keeps something behind it says so in its page: a bucket may be told once more,
behind a message for another key, and the end may go on in a later call. A message for any key of the bucket stops that: another end comes behind it.

A bucket without keys keeps nothing. Memory may hold pages, and logics built from them; both count only where the page is what is kept, to the byte.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias
from zlib import crc32

from .limits import BUCKETS, HELD_KEY_BYTES, HELD_STATE_TIMES, PAGE_BYTES, PAGES_MAX, STATE_IN_PAGE_BYTES, STATE_VALUE_BYTES_MAX, STATE_VALUES_MAX

#: What a bucket's head begins with. State that begins with 1 is a key's, as flows once kept it, or that of a source or sink.
BUCKET_VERSION = 2
#: What a message to a bucket begins with.
GROUPS_VERSION = 2
HEAD = "state"
#: In place of when a key is due: it was told that nothing more comes for it, and nothing came since. So it waits for nothing.
TOLD = -1

#: Version; power of two of the number of pages; values of the rest; whether keys are still to be told; when the timer is set for.
_HEAD = struct.Struct("<BBB?q")
_GROUPS_HEAD = bytes((GROUPS_VERSION,))
_MASK = BUCKETS - 1
_SHIFT = _MASK.bit_length()
#: The names of all buckets.
NAMES = tuple(map(str, range(BUCKETS)))

#: Values by key.
Groups: TypeAlias = dict[str, list[Any]]


class Kept(Protocol):
    """State of a node under one of its keys."""

    def state_get(self, name: str) -> bytes | None: ...
    def state_put(self, name: str, value: bytes) -> None: ...
    def state_delete(self, name: str) -> None: ...


def bucket_of(key: str) -> str:
    """The bucket that has a key: the same in every version, for its state is there.

    >>> bucket_of("a"), bucket_of("b")
    ('579', '1017')
    """
    return NAMES[_hash(key) & _MASK]


def _hash(key: str) -> int:
    try:
        return crc32(key.encode())
    except UnicodeEncodeError:
        return crc32(key.encode("utf-8", "surrogatepass"))


def by_bucket(groups: Groups) -> dict[str, Groups]:
    """What goes to each bucket."""
    found: dict[str, Groups] = {}
    get = found.get
    for key, values in groups.items():
        name = NAMES[_hash(key) & _MASK]
        held = get(name)
        if held is None:
            found[name] = {key: values}
        else:
            held[key] = values
    return found


def pack_groups(groups: Groups, most: int, bound: int) -> list[bytes]:
    """A bucket's values as payloads of about ``most`` bytes, in the order of each key's. Raises whatever pickling raises, and ValueError where one
    item has more than ``bound``."""
    data = _GROUPS_HEAD + pickle.dumps(groups, protocol=5)
    if len(data) <= most:
        return [data]
    if len(groups) > 1:
        items = list(groups.items())
        halves = [dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])]
    else:
        ((key, values),) = groups.items()
        if len(values) == 1:
            if len(data) > bound:
                raise ValueError(f"an item has {len(data)} bytes, pickled with its key; a message on a node has at most {bound}")
            return [data]
        halves = [{key: values[: len(values) // 2]}, {key: values[len(values) // 2 :]}]
    return pack_groups(halves[0], most, bound) + pack_groups(halves[1], most, bound)


def unpack_groups(data: bytes) -> Groups:
    """Values of a payload. ValueError: it is of another version, or was not written by a stage.

    >>> [unpack_groups(data) for data in pack_groups({"a": [1, "b"]}, 100, 100)]
    [{'a': [1, 'b']}]
    """
    if data[:1] != _GROUPS_HEAD:
        found = f"version {data[0]}" if data else "nothing"
        raise ValueError(f"the message is none to keys of a flow: it begins with {found}, and this skep reads {GROUPS_VERSION}")
    groups = pickle.loads(data[1:])
    if type(groups) is not dict:
        raise ValueError("the message is none to keys of a flow: it holds no values by key")
    return groups


class Page:
    """Some of a bucket's keys."""

    __slots__ = ("dues", "large", "raw", "states")

    def __init__(self, raw: bytes = b"") -> None:
        #: As it is kept; nothing: it has no key.
        self.raw = raw
        #: Packed; or of a large one its size and digest.
        self.states: dict[str, bytes | tuple[int, bytes]] = {}
        #: When a key's timer is due, ms since 1970, of those that have one; ``TOLD``.
        self.dues: dict[str, int] = {}
        #: How many are large.
        self.large = 0
        if raw:
            self.states, self.dues, self.large = pickle.loads(raw)

    def encode(self) -> None:
        """Makes ``raw`` what the rest says."""
        self.raw = pickle.dumps((self.states, self.dues, self.large), protocol=5) if self.states else b""


class Buckets:
    """The buckets of a stage in an instance; one of them is the current input's. ``forget`` is told of keys whose logic is out of date."""

    def __init__(self, kept: Kept, forget: Callable[[str], None]) -> None:
        self._kept = kept
        self._forget = forget
        #: By bucket, number of pages and number.
        self._held: dict[tuple[str, int, int], Page] = {}
        self._held_keys = self._held_bytes = 0
        #: How many pages a bucket had when memory last read one of them.
        self._counts: dict[str, int] = {}
        # Of the current one.
        self.name = ""
        #: When its timer is set for, ms since 1970; 0: it has none.
        self.timer = 0
        #: Whether the end of its stream came, and some of its keys are still to be told.
        self.ending = False
        self._head = b""
        self._count = 1
        self._sizes = [0]
        self._dues = [0]
        self._inline = b""
        self._pages: dict[int, Page] = {}
        self._changed: set[int] = set()
        self._rest = 0
        self._rest_new: list[bytes] | None = None
        self._large: dict[str, bytes] = {}
        self._writes: list[tuple[str, bytes | None]] = []

    def begin(self, name: str) -> None:
        """Makes a bucket the current one. ValueError: what is kept is no bucket."""
        self.name, self._changed, self._rest_new, self._large, self._pages, self._writes = name, set(), None, {}, {}, []
        raw = self._kept.state_get(HEAD)
        if raw is None:
            self.timer, self._head, self._count, self._sizes, self._dues, self._inline, self._rest = 0, b"", 1, [0], [0], b"", 0
            self.ending = False
            self._as_many()
            return
        if raw[:1] != bytes((BUCKET_VERSION,)):
            found = f"has version {raw[0]} and this skep reads {BUCKET_VERSION}" if raw else "is empty"
            raise ValueError(f"{found}: it was written by another one, or by no flow")
        try:
            _, power, self._rest, self.ending, self.timer = _HEAD.unpack_from(raw)
            if power > PAGES_MAX.bit_length() - 1:
                raise ValueError(f"can't be read: it has 2^{power} pages")
            self._count = 1 << power
            found_pages = struct.unpack_from(f"<{self._count}q{self._count}I", raw, _HEAD.size)
        except struct.error as e:
            raise ValueError(f"can't be read: {e}") from None
        self._dues, self._sizes = list(found_pages[: self._count]), list(found_pages[self._count :])
        size = _HEAD.size + 12 * self._count
        self._head, self._inline = raw, raw[size:] if self._count == 1 else b""
        self._as_many()

    def _as_many(self) -> None:
        """Drops what memory holds of a bucket that has more pages now, or fewer."""
        name, count = self.name, self._count
        before = self._counts.setdefault(name, count)
        if before != count:
            for number in range(before):
                page = self._held.get((name, before, number))
                if page is not None:
                    self._drop((name, before, number), page)
            self._counts[name] = count

    # ---------------------------------------------------------------------------------------------------------------------------- pages

    def _page(self, number: int) -> Page:
        page = self._pages.get(number)
        if page is None:
            raw = self._inline
            if self._count > 1:
                raw = self._kept.state_get(f"page.{number}") or b"" if self._sizes[number] else b""
            at = (self.name, self._count, number)
            held = self._held.get(at)
            if held is not None and held.raw == raw:
                page = held
            else:
                try:
                    page = Page(raw)
                except Exception as e:
                    raise ValueError(f"can't be read: {type(e).__name__}: {e}") from e
                if held is not None:
                    new = page.states
                    for key, state in held.states.items():
                        if new.get(key) != state:
                            self._forget(key)
                    self._held_keys -= len(held.states)
                    self._held_bytes -= len(held.raw)
                self._held[at] = page
                self._held_keys += len(page.states)
                self._held_bytes += len(raw)
            self._pages[number] = page
        return page

    def _number(self, key: str) -> int:
        return _hash(key) >> _SHIFT & self._count - 1

    def of(self, key: str) -> Page:
        """The page that has a key."""
        return self._page(self._number(key) if self._count > 1 else 0)

    def dues(self, keys: Iterable[str]) -> dict[str, int]:
        """Of those that have one, when the timer of a key is due. Reads their pages, so that memory holds nothing of them that is out of date."""
        if self._count == 1:
            dues = self._page(0).dues
            return {key: dues[key] for key in keys if dues.get(key, 0) > 0} if dues else {}
        found = {}
        for key in keys:
            at = self.of(key).dues.get(key, 0)
            if at > 0:
                found[key] = at
        return found

    def due(self, now: int) -> list[str]:
        """Keys whose time came, the first first."""
        found = []
        for number, first in enumerate(self._dues):
            if 0 < first <= now:
                found += [(at, key) for key, at in self._page(number).dues.items() if 0 < at <= now]
        found.sort()
        return [key for _, key in found]

    def keys(self) -> list[str]:
        """All of the bucket's, in order."""
        return sorted(key for number, size in enumerate(self._sizes) if size for key in self._page(number).states)

    def untold(self) -> list[str]:
        """Those that were not told their end, in order."""
        pages = [self._page(number) for number, size in enumerate(self._sizes) if size]
        return sorted(key for page in pages for key in page.states if page.dues.get(key) != TOLD)

    def light(self, keys: Iterable[str]) -> int:
        """How many of the first keys have, together, at most as much state as one value may have; one at least."""
        if sum(self._sizes) <= STATE_VALUE_BYTES_MAX and not any(page.large for page in self._pages.values()):
            return 1 << 60
        size = count = 0
        for key in keys:
            state = self.of(key).states.get(key, b"")
            size += state[0] if type(state) is tuple else len(state)
            if size > STATE_VALUE_BYTES_MAX and count:
                break
            count += 1
        return count

    # ---------------------------------------------------------------------------------------------------------------------------- a key

    def load(self, key: str) -> bytes | None:
        """The packed state of a key."""
        state = self.of(key).states.get(key)
        if not isinstance(state, tuple):
            return state
        size, digest = state
        data = b"".join(self._kept.state_get(name) or b"" for name in _names(key, size))
        if _digest(data) != digest:
            raise ValueError(f"the kept state of {key!r} can't be read: some of its {size} bytes are missing or are others")
        return data

    def put(self, key: str, state: bytes | None, due: int) -> None:
        """What a key has now; None: nothing. ``due`` as in :meth:`dues`, 0: none; or ``TOLD``. ValueError: too much."""
        number = self._number(key) if self._count > 1 else 0
        page = self._pages.get(number) or self._page(number)
        old = page.states.get(key)
        if state is not None and old.__class__ is bytes and len(state) <= STATE_IN_PAGE_BYTES and not due and not page.dues:
            # What happens to most, most often.
            if state != old:
                page.states[key] = state
                self._changed.add(number)
            return
        new: bytes | tuple[int, bytes] | None = state
        if state is not None and len(state) > STATE_IN_PAGE_BYTES:
            if len(state) > STATE_VALUES_MAX * STATE_VALUE_BYTES_MAX:
                most = STATE_VALUES_MAX * STATE_VALUE_BYTES_MAX
                raise ValueError(f"the state of {key!r} has {len(state)} bytes, pickled; a node keeps {most} of one key at most")
            new = (len(state), _digest(state))
        if new == old and page.dues.get(key, 0) == due:
            return
        self._changed.add(number)
        if new != old and (type(new) is tuple or type(old) is tuple):
            names = _names(key, len(state)) if state is not None and type(new) is tuple else []
            if type(old) is tuple:
                page.large -= 1
                self._writes += [(name, None) for name in _names(key, old[0])[len(names) :]]
            if state is not None and type(new) is tuple:
                page.large += 1
                for index, name in enumerate(names):
                    self._writes.append((name, state[index * STATE_VALUE_BYTES_MAX : (index + 1) * STATE_VALUE_BYTES_MAX]))
        if new is None:
            if old is not None:
                del page.states[key]
                self._held_keys -= 1
            page.dues.pop(key, None)
            return
        if old is None:
            self._held_keys += 1
        page.states[key] = new
        if due:
            page.dues[key] = due
        else:
            page.dues.pop(key, None)

    # ----------------------------------------------------------------------------------------------------------------------------- rest

    @property
    def has_rest(self) -> bool:
        """Whether values wait that came before."""
        return self._rest > 0

    def rest(self) -> Groups:
        """Values that came before, and wait."""
        if not self._rest:
            return {}
        return unpack_groups(b"".join(self._kept.state_get(f"rest.{index}") or b"" for index in range(self._rest)))

    def put_rest(self, groups: Groups) -> None:
        """What waits from now on. ValueError: too much."""
        data = _GROUPS_HEAD + pickle.dumps(groups, protocol=5) if groups else b""
        parts = [data[at : at + STATE_VALUE_BYTES_MAX] for at in range(0, len(data), STATE_VALUE_BYTES_MAX)]
        if len(parts) > STATE_VALUES_MAX:
            raise ValueError(f"{len(data)} bytes of values wait for keys whose state is large; a node keeps {STATE_VALUES_MAX} times 256 KiB of them")
        self._rest_new = parts

    # ----------------------------------------------------------------------------------------------------------------------------- ends

    def settle(self) -> int:
        """Makes what is to be written of what was put. How many bytes it has."""
        for number in self._changed:
            self._encode(number)
        if sum(self._sizes) > self._count * PAGE_BYTES and self._count < PAGES_MAX and self._changed:
            self._grow()
        if self._count > 1:
            for number in self._changed:
                self._writes.append((f"page.{number}", self._pages[number].raw or None))
        if self._rest_new is not None:
            self._writes += [(f"rest.{index}", part) for index, part in enumerate(self._rest_new)]
            self._writes += [(f"rest.{index}", None) for index in range(len(self._rest_new), self._rest)]
            self._rest = len(self._rest_new)
        return sum(len(value) for _, value in self._writes if value is not None) + len(self._head) + self._sizes[0]

    def _encode(self, number: int) -> None:
        page = self._pages[number]
        self._held_bytes -= len(page.raw)
        page.encode()
        self._held_bytes += len(page.raw)
        self._sizes[number] = len(page.raw)
        self._dues[number] = min((at for at in page.dues.values() if at > 0), default=0) if page.dues else 0

    def _grow(self) -> None:
        """More pages, so that a key costs no more than its page."""
        before = self._count
        old = [self._page(number) for number in range(before)]
        for number in range(before):
            if before > 1:
                self._writes.append((f"page.{number}", None))
            self._held.pop((self.name, before, number), None)
            self._held_bytes -= len(old[number].raw)
        while sum(self._sizes) > self._count * PAGE_BYTES and self._count < PAGES_MAX:
            self._count *= 2
        pages = [Page() for _ in range(self._count)]
        for page in old:
            for key, state in page.states.items():
                new = pages[self._number(key)]
                new.states[key] = state
                new.large += type(state) is tuple
                if key in page.dues:
                    new.dues[key] = page.dues[key]
        self._sizes, self._dues = [0] * self._count, [0] * self._count
        self._counts[self.name] = self._count
        self._pages = dict(enumerate(pages))
        self._changed = set(self._pages)
        for number, page in self._pages.items():
            self._encode(number)
            self._held[self.name, self._count, number] = page

    def first_due(self) -> int:
        """When the first of all keys is due, ms since 1970; 0: none. To be called after :meth:`settle`."""
        return min(filter(None, self._dues), default=0)

    def write(self, timer: int) -> int:
        """Writes it. ``timer``: when the bucket's is set for. How many bytes were written."""
        kept, size = self._kept, 0
        for name, value in self._writes:
            if value is None:
                kept.state_delete(name)
            else:
                kept.state_put(name, value)
                size += len(value)
        if not any(self._sizes) and not self._rest and not timer:
            if self._head:
                kept.state_delete(HEAD)
            return size
        pages = struct.pack(f"<{self._count}q{self._count}I", *self._dues, *self._sizes)
        head = _HEAD.pack(BUCKET_VERSION, self._count.bit_length() - 1, self._rest, self.ending, timer) + pages
        if self._count == 1:
            head += self._pages[0].raw if 0 in self._pages else self._inline
        if head != self._head:
            kept.state_put(HEAD, head)
            size += len(head)
        return size

    def drop(self) -> None:
        """Drops what memory holds of the current bucket's pages that were read: what was put into them is not kept."""
        for number, page in self._pages.items():
            self._drop((self.name, self._count, number), page)
        self._pages = {}

    def _drop(self, at: tuple[str, int, int], page: Page) -> None:
        if self._held.pop(at, None) is not None:
            self._held_keys -= len(page.states)
            self._held_bytes -= len(page.raw)
        for key in page.states:
            self._forget(key)

    def slim(self, most: int) -> None:
        """Between two calls of an instance: holds at most so many bytes, about, of which the longest held go."""
        while self._held and self._held_keys * HELD_KEY_BYTES + self._held_bytes * HELD_STATE_TIMES > most:
            at = next(iter(self._held))
            self._drop(at, self._held[at])


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _names(key: str, size: int) -> list[str]:
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return [f"{digest}.{index}" for index in range(-(-size // STATE_VALUE_BYTES_MAX))]
