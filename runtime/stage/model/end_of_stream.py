"""Explicit-state model of the end of streams (docs/ends.md): a source, a keyed stage behind it, and another behind that.

Run: python3 end_of_stream.py     a row per variant: states, verdict; under each mutant its shortest counterexample.

How to read it: `Store` is what the life of a Swarm holds, `Node` what a node keeps in memory. `successors` is every step that can come next,
`violation` what no history may show, `drain` the liveness check. `explore` walks breadth first, so the first trace to a violation is a
shortest one.

What is abstracted:
- Commits are those of the delivery protocol, and only their base is checked: it is enough (the id of a commit is its content with its base). An owner
  prepares a commit from what it read, and it is delivered later, twice, or never; so owners that lost their partition are in it, and crashes.
- A rescale is one step: what a partition has goes to those that own its keys, and all last commits are new. Seals keep the order meanwhile.
- Failover: "mark" picks a point of the history, a later "FAILOVER" falls back to it. What was marked last is durable.
- A revision of the Swarm is one run of this. A list of keys is one page."""
import gc
import sys
import time
from collections import deque, namedtuple
from itertools import count

# `seq` counts commits of this history; `read` of each source partition what it gave, and whether it said that it has ended.
Store = namedtuple('Store', 'seq read stages ledger gone')
# `last` by partition; `inbox` of (key, what); `timers`: keys whose end's timer is set; `parked` and `dead` of (key, what, attempts);
# `kept`: keys with state, each with its mark: '' (open), 'told' or 'aside'.
Stage = namedtuple('Stage', 'last inbox timers parked dead kept')
# `ended`: stages; `tells`: stages whose keys it tells; `look`: a look under way, (stage, how far).
Node = namedtuple('Node', 'ended tells look')
State = namedtuple('State', 'store nodes wire marks left history', defaults=(0,))
# What may still happen: commits to be prepared beyond those that are delivered at once, kills of nodes, rescales, operators, failovers.
Left = namedtuple('Left', 'late kills rescales operators marks')

Commit = namedtuple('Commit', 'stage part base what key result')

# `items` by source partition, (key, what); `fails`: what may fail, (stage, key, what); `stays`: keys of which something is kept behind their end.
Scenario = namedtuple('Scenario', 'items parts fails stays left nodes', defaults=((), (), Left(0, 0, 0, 0, 0), 1))

# Without `base` or `empty` nothing was found that breaks a rule: for ends alone they are assertions, for all else they are the protocol.
GUARDS = frozenset({
    'upstream',   # a stage is looked at only once all that it reads from is known to have ended, not before
    'unread',     # … and only if nothing is unread there
    'parked',     # … nor waits for another attempt
    'dead',       # … nor is a dead letter
    'keys',       # a stage has ended only when each of its keys was told
    'again',      # … and when nothing was unread, parked, dead or timed at a look behind the one at its keys
    'timers',     # … which counts the timers
    'mark',       # the commit that tells a key leaves a mark with what is left of it, and a marked key is passed over
    'aside',      # a key whose end is a dead letter is marked, too
    'empty',      # an owner tells its keys only when nothing of its partition is unread
    'waits',      # … nor waits for another attempt: an end that does would be told anew behind its dead letter
    'base',       # a commit is refused where the partition's last one is not that which it builds on
    'flush',      # what a node believes for good is durable
})
END = 'END'
IDS = {}

def identity(*content):
    return IDS.setdefault(content, len(IDS) + 1)

def partition(key, parts):
    """Of two partitions, `a` is in the first and all other keys are in the second."""
    return 0 if parts == 1 or key == 'a' else 1

# ------------------------------------------------------------------ the store

def first_store(sc):
    fresh = [Stage(tuple(identity('first', s, p) for p in range(sc.parts[s])), (), frozenset(), (), (), ()) for s in (0, 1)]
    return Store(0, tuple((0, False) for _ in sc.items), tuple(fresh), (), ())

def with_stage(store, s, **changes):
    stages = list(store.stages)
    stages[s] = stages[s]._replace(**changes)
    return store._replace(stages=tuple(stages))

def marked(kept, key, mark):
    """What is kept, with another mark; None: nothing is kept of the key."""
    rest = tuple(k for k in kept if k[0] != key)
    return rest if mark is None else tuple(sorted(rest + ((key, mark),)))

def deliver(store, c, sc, on):
    """A commit of a stage's owner: the store after it, or None where it is refused."""
    stage = store.stages[c.stage]
    if c.part >= len(stage.last) or 'base' in on and stage.last[c.part] != c.base:
        return None
    if c.what == 'tell':
        after = stage._replace(timers=stage.timers | set(c.key))
    else:
        after = taken(stage, c)
        if after is None:
            return None
        mark = dict(after.kept).get(c.key)
        if c.result == 'park':
            after = after._replace(parked=place(after.parked, c))
        elif c.result == 'dead':
            after = after._replace(dead=after.dead + ((c.key, c.what[1]),))
            if c.what[1] == END and mark is not None and 'aside' in on:
                after = after._replace(kept=marked(after.kept, c.key, 'aside'))
        elif c.result == 'done':
            if c.what[1] == END:
                told = 'told' if 'mark' in on else ''
                after = after._replace(kept=marked(after.kept, c.key, told if (c.stage, c.key) in sc.stays else None))
            else:
                after = after._replace(kept=marked(after.kept, c.key, ''))
    last = list(after.last)
    last[c.part] = identity(c)
    store = with_stage(store._replace(seq=store.seq + 1), c.stage, **after._replace(last=tuple(last))._asdict())
    if c.result == 'done':
        store = store._replace(ledger=store.ledger + ((c.stage, c.key, c.what[1]),))
        if c.stage == 0:
            store = with_stage(store, 1, inbox=store.stages[1].inbox + (('x', c.what[1] + c.key),))
    return store

def taken(stage, c):
    """A stage without what a commit consumes, or None where that is gone."""
    kind, what = c.what
    if kind == 'message':
        found = next((m for m in stage.inbox if partition(m[0], len(stage.last)) == c.part), None)
        if found != (c.key, what):
            return None
        at = stage.inbox.index(found)
        return stage._replace(inbox=stage.inbox[:at] + stage.inbox[at + 1:])
    if kind == 'timer':
        return stage._replace(timers=stage.timers - {c.key}) if c.key in stage.timers else None
    head = next((p for p in stage.parked if p[0] == c.key), None)
    if head is None or head[1] != what:
        return None
    at = stage.parked.index(head)
    return stage._replace(parked=stage.parked[:at] + stage.parked[at + 1:])

def place(parked, c):
    """A failed retry keeps its place in front of its key; what is parked anew is behind the others."""
    entry = (c.key, c.what[1], 0 if c.what[0] != 'retry' and any(p[0] == c.key for p in parked) else 1)
    if c.what[0] == 'retry':
        at = next((n for n, p in enumerate(parked) if p[0] == c.key), len(parked))
        return parked[:at] + (entry,) + parked[at:]
    return parked + (entry,)

def batches(store, s, sc, on):
    """Every commit that an owner of a partition of a stage may prepare, of one input."""
    stage = store.stages[s]
    held = {p[0] for p in stage.parked}
    for part, base in enumerate(stage.last):
        own = [m for m in stage.inbox if partition(m[0], len(stage.last)) == part]
        inputs = [(('message', what), key, 0) for key, what in own[:1]]
        inputs += [(('timer', END), key, 0) for key in sorted(stage.timers) if partition(key, len(stage.last)) == part and key not in held]
        heads = {}
        for key, what, attempts in stage.parked:
            if partition(key, len(stage.last)) == part:
                heads.setdefault(key, (what, attempts))
        inputs += [(('retry', what), key, attempts) for key, (what, attempts) in heads.items()]
        for what, key, attempts in inputs:
            mark = dict(stage.kept).get(key)
            if what[0] == 'message' and key in held:
                results = ['park']
            elif what[1] == END and what[0] != 'message' and (mark is None or mark == 'told'):
                results = ['needless']
            else:
                may = (s, key, what[1]) in sc.fails
                results = ['done'] + ['dead' if attempts else 'park'] * may
            for result in results:
                yield Commit(s, part, base, what, key, result)

def open_keys(stage, part=None):
    own = [key for key, mark in stage.kept if not mark]
    return tuple(key for key in own if part is None or partition(key, len(stage.last)) == part)

# ------------------------------------------------------------------ everything that can happen next

def successors(state, sc, on):
    """(label, next state) for every step possible."""
    store = state.store

    def step(label, new_store=store, **changes):
        return label, state._replace(store=new_store, **changes)

    for p, (at, said) in enumerate(store.read):
        if not said:
            read = list(store.read)
            if at < len(sc.items[p]):
                read[p] = (at + 1, False)
                sent = with_stage(store, 0, inbox=store.stages[0].inbox + (sc.items[p][at],))
                yield step(('source sends', sc.items[p][at]), sent._replace(read=tuple(read), seq=store.seq + 1))
            else:
                read[p] = (at, True)
                yield step(('source', p, 'ends'), store._replace(read=tuple(read), seq=store.seq + 1))

    prepared = [c for s in (0, 1) for c in batches(store, s, sc, on)]
    for node in set(state.nodes):
        for s in node.tells:
            stage = store.stages[s]
            for part, base in enumerate(stage.last):
                keys = open_keys(stage, part)
                unread = any(partition(key, len(stage.last)) == part for key, _ in stage.inbox)
                waits = any(partition(key, len(stage.last)) == part for key, _, _ in stage.parked)
                if keys and not set(keys) <= stage.timers and not ('empty' in on and unread) and not ('waits' in on and waits):
                    prepared.append(Commit(s, part, base, 'tell', keys, None))
    for c in prepared:
        after = deliver(store, c, sc, on)
        if after is not None:
            yield step(('commit', c), after)
        if state.left.late and c not in state.wire:
            yield step(('prepares', c), wire=state.wire | {c}, left=state.left._replace(late=state.left.late - 1))
    for c in state.wire:
        after = deliver(store, c, sc, on)
        if after is not None:
            yield step(('late commit', c), after)

    for n, node in enumerate(state.nodes):
        for label, after in looks(node, state, on):
            nodes = tuple(sorted(state.nodes[:n] + (after,) + state.nodes[n + 1:], key=repr))
            yield step(('node', label), nodes=nodes)
        if state.left.kills and node != NEW:
            nodes = tuple(sorted(state.nodes[:n] + (NEW,) + state.nodes[n + 1:], key=repr))
            yield step(('node killed',), nodes=nodes, left=state.left._replace(kills=state.left.kills - 1))

    if state.left.rescales and len(store.stages[0].last) == 2:
        last = (identity('rescale', store.stages[0].last),)
        yield step(('rescale',), with_stage(store._replace(seq=store.seq + 1), 0, last=last), left=state.left._replace(rescales=0))
    for s in (0, 1) if state.left.operators else ():
        stage = store.stages[s]
        less = state.left._replace(operators=state.left.operators - 1)
        for at, (key, what) in enumerate(stage.dead):
            part = partition(key, len(stage.last))
            last = tuple(identity('operator', x) if p == part else x for p, x in enumerate(stage.last))
            rest = stage._replace(dead=stage.dead[:at] + stage.dead[at + 1:], last=last)
            back = rest._replace(timers=rest.timers | {key}) if what == END else rest._replace(inbox=rest.inbox + ((key, what),))
            moved = store._replace(seq=store.seq + 1)
            yield step(('redrive', s, key, what), with_stage(moved, s, **back._asdict()), left=less)
            dropped = with_stage(moved, s, **rest._asdict())
            yield step(('discard', s, key, what), dropped._replace(gone=store.gone + ((s, key, what),)), left=less)
    if state.left.marks and store not in state.marks:
        yield step(('mark',), marks=state.marks + (store,), left=state.left._replace(marks=state.left.marks - 1))
    if state.marks and store != state.marks[-1]:
        yield step(('FAILOVER to mark',), state.marks[-1], marks=state.marks[:-1], history=state.history + 1)

NEW = Node(frozenset(), frozenset(), None)
SOURCE = 'source'

def still(stage, on):
    return not ('unread' in on and stage.inbox or 'parked' in on and stage.parked or 'dead' in on and stage.dead)

def durable(state, look, on):
    """Whether what a look read last is of this history, and no failover can take it back."""
    _, _, seq, history = look
    return 'flush' not in on or history == state.history and all(mark.seq >= seq for mark in state.marks)

def looks(node, state, on):
    """What a node may find out next: (label, node after it)."""
    store = state.store
    if SOURCE not in node.ended:
        safe = 'flush' not in on or all(all(said for _, said in mark.read) for mark in state.marks)
        if all(said for _, said in store.read) and safe:
            yield 'source has ended', node._replace(ended=node.ended | {SOURCE})
    for s in (0, 1):
        above = SOURCE if s == 0 else 0
        stage = store.stages[s]
        if s in node.ended:
            continue

        def reads(what, s=s):
            # Where no failover comes any more, when it read does not matter.
            return node._replace(look=(s, what, store.seq if state.marks or state.left.marks else 0, state.history))
        if node.look is None:
            # Without the guard the counters are read first, and what the stage reads from is looked at behind them.
            if still(stage, on) and (above in node.ended or 'upstream' not in on):
                yield f'looks at {s}: still', reads('counters')
            continue
        if node.look[0] != s:
            continue
        match node.look[1]:
            case 'counters' if above in node.ended and durable(state, node.look, on):
                if open_keys(stage):
                    yield f'looks at {s}: keys to tell', reads('open')
                if not open_keys(stage) or 'keys' not in on:
                    yield f'looks at {s}: all told', reads('told')
            case 'open' if still(stage, on):
                yield f'looks at {s}: still', reads('telling')
            case 'telling' if durable(state, node.look, on):
                yield f'tells {s}', node._replace(look=None, tells=node.tells | {s})
            # A list of keys is shown only once it is durable, as the look behind it is.
            case 'told' if durable(state, node.look, on) and (
                    'again' not in on or still(stage, on) and not ('timers' in on and stage.timers)):
                yield f'looks at {s}: inert', reads('inert')
            case 'inert' if durable(state, node.look, on):
                yield f'{s} has ended', node._replace(look=None, ended=node.ended | {s})
    if node.look is not None:
        yield 'gives a look up', node._replace(look=None)

# ------------------------------------------------------------------ what must hold

def violation(store):
    """The first rule that this history breaks, or None."""
    told = set()
    for at, (s, key, what) in enumerate(store.ledger):
        if (s, key) in told:
            return f'stage {s}: {what} of key {key} behind its end' if what != END else f'stage {s}: key {key} was told twice'
        if what == END:
            told.add((s, key))
        if store.ledger.index((s, key, what)) < at:
            return f'stage {s}: {what} of key {key} twice'
    for s, stage in enumerate(store.stages):
        if len(set(stage.dead)) < len(stage.dead):
            return f'stage {s}: two dead letters of one end'
    return None

def drain(store, sc, on):
    """Liveness: faults end, sources go on, and a new node looks. All is done, every key is told, all stages end."""
    state = State(store, (NEW,), frozenset(), (), Left(0, 0, 0, 0, 0))
    for _ in count():
        if SOURCE in state.nodes[0].ended and state.nodes[0].ended >= {0, 1}:
            break
        # Whoever is dead comes back, so that the end does not wait for good.
        dead = any(stage.dead for stage in state.store.stages)
        state = state._replace(left=state.left._replace(operators=1 if dead else 0))
        good = [(label, after) for label, after in successors(state, sc, on)
                if not (label[0] == 'commit' and label[1].result in ('park', 'dead') and label[1].what[0] != 'message')
                and not (label[0] == 'commit' and label[1].result == 'park' and label[1].key not in held(state.store, label[1].stage))
                and label[0] != 'discard' and label != ('node', 'gives a look up')]
        if not good:
            return 'does not drain'
        state = good[0][1]
    broken = violation(state.store)
    if broken:
        return 'drained: ' + broken
    store = state.store
    sent = {(0, key, what) for items in sc.items for key, what in items}
    for s, key, what in sorted(sent - set(store.gone)):
        if (s, key, what) not in store.ledger:
            return f'{what} of key {key} is lost'
    told = {(s, key) for s, key, what in store.ledger if what == END} | {(s, key) for s, key, what in store.gone if what == END}
    for s, key, what in store.ledger:
        if (s, key) not in told:
            return f'stage {s}: key {key} was never told'
    return None

def held(store, s):
    return {p[0] for p in store.stages[s].parked}

# ------------------------------------------------------------------ search and report

def explore(sc, on):
    """Breadth first over all states: (number of states, what broke or None, trace to it)."""
    first = State(first_store(sc), (NEW,) * sc.nodes, frozenset(), (), sc.left)
    came_from, queue, stores, broken = {first: None}, deque([first]), {}, None
    while queue and not broken:
        state = queue.popleft()
        if state.store not in stores:
            stores[state.store] = state
            broken = violation(state.store)
        for label, after in successors(state, sc, on):
            if after not in came_from:
                came_from[after] = state, label
                queue.append(after)
    unchecked = iter(stores.values())
    while not broken and (state := next(unchecked, None)):
        broken = drain(state.store, sc, on)
    trace = []
    while broken and came_from[state]:
        state, label = came_from[state]
        trace.insert(0, label)
    return len(came_from), broken, trace

def told(trace):
    """A trace in words."""
    words = []
    for what, *about in trace:
        if about and isinstance(about[0], Commit):
            c = about[0]
            did = f'tells {",".join(c.key)}' if c.what == 'tell' else f'{c.what[0]} {c.what[1]} of {c.key}: {c.result}'
            words.append(f'{what} (stage {c.stage}: {did})')
        else:
            words.append(' '.join(map(str, [what, *about])))
    return ' | '.join(words)

ONE = ((('a', '1'),),)
TWO = ((('a', '1'),), (('b', '1'),))
SAME = ((('a', '1'), ('a', '2')),)
FULL = GUARDS
VARIANTS = [                                              # title, workload and bounds, guards, must it hold
    ('two keys, two nodes, kills', Scenario(TWO, (2, 1), (), ((0, 'a'),), Left(0, 1, 0, 0, 0), 2), FULL, True),
    ('two keys, rescale, a late commit', Scenario(TWO, (2, 1), (), ((0, 'a'),), Left(1, 0, 1, 0, 0), 1), FULL, True),
    ('one key, late commits, two nodes', Scenario(ONE, (1, 1), (), ((0, 'a'), (1, 'x')), Left(1, 1, 0, 0, 0), 2), FULL, True),
    ('an item fails', Scenario(SAME, (1, 1), ((0, 'a', '1'),), (), Left(1, 0, 0, 1, 0), 1), FULL, True),
    ('an item fails, two nodes', Scenario(ONE, (1, 1), ((0, 'a', '1'),), ((0, 'a'),), Left(0, 1, 0, 1, 0), 2), FULL, True),
    ('an end fails, it stays', Scenario(ONE, (1, 1), ((0, 'a', END),), ((0, 'a'),), Left(1, 0, 0, 2, 0), 1), FULL, True),
    ('an end fails, two keys', Scenario(TWO, (2, 1), ((0, 'a', END),), (), Left(0, 1, 0, 1, 0), 1), FULL, True),
    ('failover', Scenario(ONE, (1, 1), (), ((0, 'a'),), Left(1, 0, 0, 0, 2), 1), FULL, True),
    ('failover, an item fails', Scenario(ONE, (1, 1), ((0, 'a', '1'),), (), Left(0, 0, 0, 1, 1), 1), FULL, True),
] + [('no ' + guard, sc, FULL - {guard}, False) for guard, sc in (
    ('upstream', Scenario(ONE, (1, 1), (), (), Left(0, 0, 0, 0, 0), 1)),
    ('unread', Scenario(SAME, (1, 1), (), (), Left(0, 0, 0, 0, 0), 1)),
    ('parked', Scenario(TWO, (1, 1), ((0, 'a', '1'),), (), Left(0, 0, 0, 1, 0), 1)),
    ('dead', Scenario(TWO, (1, 1), ((0, 'a', '1'),), (), Left(0, 0, 0, 1, 0), 1)),
    ('keys', Scenario(ONE, (1, 1), (), (), Left(0, 0, 0, 0, 0), 1)),
    ('again', Scenario(ONE, (1, 1), ((0, 'a', END),), ((0, 'a'),), Left(0, 0, 0, 1, 0), 2)),
    ('timers', Scenario(ONE, (1, 1), ((0, 'a', END),), ((0, 'a'),), Left(0, 0, 0, 1, 0), 1)),
    ('mark', Scenario(ONE, (1, 1), (), ((0, 'a'),), Left(0, 0, 0, 0, 0), 1)),
    ('aside', Scenario(ONE, (1, 1), ((0, 'a', END),), ((0, 'a'),), Left(0, 0, 0, 2, 0), 1)),
    ('waits', Scenario(ONE, (1, 1), ((0, 'a', END),), ((0, 'a'),), Left(0, 0, 0, 0, 0), 1)),
    ('flush', Scenario(ONE, (1, 1), (), (), Left(0, 0, 0, 0, 2), 1)))]

def main():
    gc.disable()                                          # nothing here is cyclic, and the collector costs a quarter
    began, surprises = time.time(), 0
    for title, sc, on, must_hold in VARIANTS:
        states, broken, trace = explore(sc, on)
        surprises += (broken is None) != must_hold
        print('%-42s %7d  %s' % (title, states, broken or 'exhausted, all hold'), flush=True)
        if trace:
            print('      ' + told(trace))
    print('%d variants in %.0f s, %d not as expected' % (len(VARIANTS), time.time() - began, surprises))
    sys.exit(surprises > 0)

if __name__ == '__main__':
    main()
