package sim

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// finished returns a cluster that has come to its end without faults, and whose nodes still run, and a leader in it.
func finished(t *testing.T) (*world, *node) {
	t.Helper()
	o := quietOptions(3)
	o.Chaos, o.NoHibernate = 8*time.Second, true
	w := newWorld(o)
	w.run()
	t.Cleanup(func() {
		for _, n := range w.nodes {
			n.close()
		}
	})
	if w.err != nil {
		t.Fatal(w.err)
	}
	for _, n := range w.nodes {
		if n.host.Shards()[0].Leads {
			return w, n
		}
	}
	t.Fatal("nobody leads")
	return nil, nil
}

// finds runs a check after something was broken, and requires that it says what that is. An empty want is for what is no fault.
func (w *world) finds(t *testing.T, what, want string, check func()) {
	t.Helper()
	w.err = nil
	check()
	if want == "" && w.err != nil || want != "" && (w.err == nil || !strings.Contains(w.err.Error(), want)) {
		t.Errorf("%s: found %v, want %q", what, w.err, want)
	}
	w.err = nil
}

// opOf returns an operation of a kind that was applied, and acknowledged or not as wanted.
func (c *checker) opOf(t *testing.T, op byte, acked bool) uint64 {
	t.Helper()
	for _, id := range c.order {
		if f := c.ops[id]; f.cmd.op == op && f.acked == acked {
			return id
		}
	}
	t.Fatalf("there is no operation %d", op)
	return 0
}

// Each thing that is compared at the end can be found to be wrong.
func TestChecker_FinalStateAndHistory(t *testing.T) {
	w, lead := finished(t)
	c := w.check
	put, timer := c.opOf(t, opPut, true), c.opOf(t, opTimer, true)
	w.finds(t, "nothing", "", c.final)
	// with changes what clients are believed to have been told of an operation.
	with := func(what, want string, id uint64, change func(*opFate)) {
		t.Helper()
		was := *c.ops[id]
		change(c.ops[id])
		w.finds(t, what, want, c.final)
		*c.ops[id] = was
	}
	with("a refused write that is there", "was refused, and applied all the same", put, func(f *opFate) { f.never = true })
	with("a failed one that is there", "returned an error, but its writes stayed", put, func(f *opFate) { f.cmd.op, f.acked = opFail, false })
	with("a timer that did not fire", "fired 0 times", put, func(f *opFate) { f.cmd.op = opTimer })
	with("a write at another revision", "the change log of shard 1 has", put, func(f *opFate) { f.rev++ })
	with("a write at a revision without a change", "the change log of shard 1 has", put, func(f *opFate) { f.rev = math.MaxUint32 })
	with("an unknown outcome", "", put, func(f *opFate) { f.acked = false })

	lost := uint64(1 << 40)
	c.order, c.ops[lost] = append(c.order, lost), &opFate{shard: 1, cmd: command{op: opPut, id: lost}, acked: true}
	w.finds(t, "an acknowledged write that is not there", "is lost on node", c.final)
	c.ops[lost].acked = false
	w.finds(t, "one that is not there, of which nobody knows", "", c.final)
	delete(c.ops, lost)
	c.order = c.order[:len(c.order)-1]

	order := c.order
	c.order = slices.DeleteFunc(slices.Clone(order), func(id uint64) bool { return id == put })
	w.finds(t, "an operation of nobody", "counts operations that nobody issued", c.final)
	c.order = order

	f := lead.followers[0]
	f.pos--
	w.finds(t, "a follower that stopped short", "was left at", c.final)
	f.pos++

	for i := range c.reads {
		c.reads[i].id++
		w.finds(t, "a read of another value", "was the last", c.final)
		c.reads[i].id--
	}

	// What nobody saw of the change log may explain what is not there.
	h := c.history[1]
	for i, ch := range h {
		if ch.op == put {
			h[i] = seenChange{}
			w.finds(t, "a change that nobody saw", "", c.final)
			h[i] = ch
		}
	}
	c.history[1] = h[:len(h)-1]
	w.finds(t, "an end that nobody saw", "", c.final)
	if x := c.changes(1, uint64(len(h))); x.complete(0, math.MaxUint64) || !x.complete(0, h[len(h)-2].rev) {
		t.Errorf("what is missing: %+v", x.holes)
	}
	c.history[1] = h

	// The same entries once more, as if nobody knew that they had been applied.
	for _, op := range []command{c.ops[put].cmd, c.ops[timer].cmd} {
		m := lead.host.Machine(1)
		at := m.Applied()
		var out shard.Applied
		entry := shard.AppendBatchHeader(nil, shard.BatchHeader{Stamp: m.Stamp()})
		if err := m.Apply(at.Index+1, at.Term, shard.AppendCommand(entry, shard.Command{Module: ledgerID, Data: op.encode()}), &out); err != nil {
			t.Fatal(err)
		}
		if err := m.Commit(&out); err != nil {
			t.Fatal(err)
		}
		w.finds(t, "an operation that was applied twice", "exactly once", c.final)
	}
}

// Raft's five properties, and that states are equal and nothing goes back, are each found to be broken.
func TestChecker_EachStep(t *testing.T) {
	w, lead := finished(t)
	c := w.check
	s := lead.host.Shards()[0]
	key := bootKey{lead.boot, 1}
	seen := c.seen[key]
	leaders, top := maps.Clone(c.leaders), maps.Clone(c.top)
	// step looks at a status of the leader's that differs from the one before as change says.
	step := func(what, want string, change func(was *bootState, now *replica.ShardStatus)) {
		t.Helper()
		was, now := seen, s
		change(&was, &now)
		c.seen[key] = was
		w.finds(t, what, want, func() { c.shardState(lead, &now) })
		c.seen[key], c.leaders, c.top = seen, maps.Clone(leaders), maps.Clone(top)
	}
	step("nothing", "", func(*bootState, *replica.ShardStatus) {})
	step("a term", "goes back", func(was *bootState, _ *replica.ShardStatus) { was.term++ })
	step("a commit index", "goes back", func(was *bootState, _ *replica.ShardStatus) { was.commit++ })
	step("an applied index", "goes back", func(was *bootState, _ *replica.ShardStatus) { was.applied++ })
	step("a revision", "goes back", func(was *bootState, _ *replica.ShardStatus) { was.rev++ })
	step("another replica's", "", func(was *bootState, _ *replica.ShardStatus) { was.replica, was.commit = 77, was.commit+1 })
	step("what is applied and not committed", "is past commit", func(was *bootState, now *replica.ShardStatus) { was.commit, now.Commit = 0, now.Applied-1 })
	step("two leaders", "election safety", func(*bootState, *replica.ShardStatus) { c.leaders[slot{1, s.Term}] = lead.id%3 + 1 })
	step("a leader without an entry that is applied", "leader completeness", func(was *bootState, now *replica.ShardStatus) {
		was.led = 0
		now.Term++
		c.top[1] = storage.Position{Index: s.Last + 1, Term: s.Term}
	})
	step("a leader that was elected before the entry", "", func(*bootState, *replica.ShardStatus) {
		c.top[1] = storage.Position{Index: s.Last + 1, Term: s.Term + 1}
	})
	at := slot{1, s.Applied}
	want := c.applied[at]
	for _, other := range []appliedAt{{want.term + 1, want.digest}, {want.term, want.digest + 1}} {
		c.applied[at] = other
		step("another state", "state machine safety", func(was *bootState, _ *replica.ShardStatus) { was.applied-- })
	}
	c.applied[at] = want

	// What one step shows is what the next are compared with.
	c.seen[key] = bootState{}
	delete(c.applied, at)
	delete(c.leaders, slot{1, s.Term})
	delete(c.top, 1)
	c.shardState(lead, &s)
	if c.leaders[slot{1, s.Term}] != lead.id || c.applied[at] != want || c.top[1].Index != s.Applied || c.seen[key] != seen {
		t.Errorf("of a step is known: leader %d, applied %+v, top %+v, %+v", c.leaders[slot{1, s.Term}], c.applied[at], c.top[1], c.seen[key])
	}

	status := []replica.ShardStatus{s}
	entry := func(index, term uint64, data string) []storage.Write {
		return []storage.Write{{Shard: 1, Entries: []storage.Entry{{Index: index, Term: term, Data: []byte(data)}}}}
	}
	writes := func(what, want string, ws []storage.Write) {
		t.Helper()
		w.finds(t, what, want, func() { c.writes(lead, ws, status) })
		c.seen[key] = seen
	}
	writes("the next entry", "", entry(s.Last+1, s.Term, "a"))
	writes("another one elsewhere", "log matching", entry(s.Last+1, s.Term, "b"))
	writes("one of a later term", "", entry(s.Last+1, s.Term+1, "b"))
	w.finds(t, "a turn that writes", "leader append-only", func() {
		c.writes(lead, entry(s.Last+1, s.Term, "a"), status)
		c.turn(lead, entry(s.Last+1, s.Term, "a"))
	})
	c.seen[key] = seen
	writes("an entry that is there", "leader append-only", entry(s.Last, s.Term, "c"))
	writes("a gap", "leader append-only", entry(s.Last+2, s.Term, "c"))
	writes("another log", "leader append-only", []storage.Write{{Shard: 1, Reset: &storage.Position{Index: s.Last, Term: s.Term}}})

	first, last := lead.log.Bounds(1)
	behind := entrySlot{slot{1, last}, termAt(t, lead, last)}
	w.finds(t, "the logs", "", func() { c.logs(lead) })
	c.before[behind]++
	w.finds(t, "an entry behind another one", "log matching", func() { c.logs(lead) })
	w.finds(t, "an entry behind another one", "log matching", func() { c.log(lead, 1, last) })
	c.before[behind]--
	w.finds(t, "the logs", "", func() { c.log(lead, 1, first) })

	w.finds(t, "a term that another node led", "election safety", func() {
		c.leaders[slot{1, s.Term}] = lead.id%3 + 1
		c.leads(lead, 1, s.Term)
	})
	c.leaders = maps.Clone(leaders)
	w.finds(t, "a term that the node led before it was restarted", "once more", func() {
		c.led[slot{1, s.Term}] = lead.boot - 1
		c.leads(lead, 1, s.Term)
	})
}

func termAt(t *testing.T, n *node, index uint64) uint64 {
	t.Helper()
	term, err := n.log.Term(1, index)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

// What a client is told is compared with what anyone was told before it asked, and what followers see with what others saw.
func TestChecker_EachAnswer(t *testing.T) {
	w, lead := finished(t)
	c := w.check
	op := &operation{client: w.clients[0], node: lead, shard: 1, floor: 10, cmd: command{op: opPut, id: c.opOf(t, opPut, true)}}
	w.finds(t, "a later write", "", func() { c.acked(op, shard.Result{Revision: 11}) })
	if c.floor[1] < 11 || op.client.tokens[1] < 11 || !c.ops[op.cmd.id].acked || c.ops[op.cmd.id].rev != 11 {
		t.Errorf("of a write that was answered is known: %d, %d, %+v", c.floor[1], op.client.tokens[1], c.ops[op.cmd.id])
	}
	w.finds(t, "a write at a revision that was answered before", "had been answered before it began", func() { c.acked(op, shard.Result{Revision: 10}) })
	read := &operation{client: w.clients[0], node: lead, shard: 1, floor: 10, read: true}
	w.finds(t, "a read", "", func() { c.read(read, 10, 0) })
	if x := c.reads[len(c.reads)-1]; x != (readSeen{1, 0, 10, 0}) {
		t.Errorf("of a read is known %+v", x)
	}
	w.finds(t, "a read of old", "stale read", func() { c.read(read, 9, 0) })
	read.stale, read.token = true, 7
	w.finds(t, "a read with a token", "", func() { c.read(read, 7, 0) })
	w.finds(t, "a read before its token", "token read", func() { c.read(read, 6, 0) })
	read.token, lead.floor[1] = 0, 5
	w.finds(t, "a read of what the node had lost", "rebuilding read", func() { c.read(read, 4, 0) })
	w.finds(t, "a read of what it had then", "", func() { c.read(read, 5, 0) })
	c.floor[1], op.client.tokens[1] = 0, 0
	if c.told(read, 12); c.floor[1] != 12 || op.client.tokens[1] != 12 {
		t.Errorf("a read at 12 leaves %d and %d", c.floor[1], op.client.tokens[1])
	}
	for err, want := range map[error]string{
		errs.New(errs.Overloaded, "x"):  "",
		errs.New(errs.Unavailable, "x"): "",
		errs.New(errs.Conflict, "x"):    "failed with",
		errs.New(errs.Internal, "x"):    "failed with",
		errs.New(errs.Exists, "x"):      "failed with",
	} {
		w.finds(t, "a write that fails", want, func() { c.refused(op, err) })
	}
	if !c.ops[op.cmd.id].never {
		t.Error("a write that was refused may have been applied")
	}
	op.cmd.op = opFail
	w.finds(t, "a write that is to fail", "", func() { c.refused(op, errs.New(errs.Conflict, "x")) })

	h := c.history[1]
	n := uint64(len(h))
	if n < 3 {
		t.Fatalf("%d changes", n)
	}
	of := func(pos uint64) shard.Change {
		x := h[pos]
		return shard.Change{Revision: x.rev, At: time.Unix(0, x.at), Op: "put", Key: []byte{x.key}, Value: command{id: x.op}.encode()[3:11]}
	}
	change := func(what, want string, pos uint64, edit func(*shard.Change)) {
		t.Helper()
		ch := of(pos)
		edit(&ch)
		w.finds(t, what, want, func() { c.change(lead, 1, pos, ch) })
	}
	change("what all see", "", 1, func(*shard.Change) {})
	change("a change without a value", "malformed", 1, func(ch *shard.Change) { ch.Value = nil })
	change("a change of another key", "change log: shard 1 position", 1, func(ch *shard.Change) { ch.Key = []byte{99} })
	change("a change at another time", "change log: shard 1 position", 1, func(ch *shard.Change) { ch.At = ch.At.Add(1) })
	was := h[1]
	for what, rev := range map[string]shard.Revision{"a revision that was": h[0].rev, "one that is to come": h[2].rev} {
		h[1] = seenChange{}
		change(what, "goes from revision", 1, func(ch *shard.Change) { ch.Revision, ch.At = rev, time.Unix(0, was.at) })
	}
	h[1] = was
}

// What a node says of a hand-over is compared with who led.
func TestChecker_HandOvers(t *testing.T) {
	w, lead := finished(t)
	c := w.check
	now := lead.host.Shards()
	s := now[0]
	other := lead.id%3 + 1
	id := w.nodes[other-1].host.Shards()[0].Replica
	moved := func(what, want string, h handOver, err error) {
		t.Helper()
		c.status = now
		w.finds(t, what, want, func() { c.moved(lead, &h, shard.Result{Err: err}) })
	}
	led := func() handOver {
		return handOver{shard: 1, to: other, at: w.now, taken: lead.clock(), before: s, after: s, led: []uint64{s.Term - 1}}
	}
	h := led()
	h.to, h.led = lead.id, nil
	moved("a hand-over by one that did not lead", "it did not lead", h, nil)
	h.led = []uint64{s.Term}
	moved("to itself", "", h, nil)
	h = led()
	c.leaders[slot{1, s.Term}] = other
	moved("done", "", h, nil)
	c.leaders[slot{1, s.Term}] = lead.id
	moved("done, and another one leads", "has not led since", h, nil)
	moved("no leader, and it is", "led before and after", h, shard.ErrNotLeader)
	h.after.Leads = false
	moved("no leader any more", "", h, shard.ErrNotLeader)
	h = led()
	if !s.Voter(id) {
		t.Fatalf("replica %d does not vote: %+v", id, s)
	}
	moved("no voter, and it votes", "the other one votes", h, shard.ErrNoVoter)
	h.before.Voters = nil
	moved("no voter", "", h, shard.ErrNoVoter)
	moved("too late, at once", "it took only", led(), shard.ErrMoveTimeout)
	h = led()
	h.taken = h.taken.Add(-time.Minute)
	moved("too late", "", h, shard.ErrMoveTimeout)
	delete(c.leaders, slot{1, s.Term})
	moved("another one was elected, and none was", "no other one led", led(), errs.New(errs.Conflict, "x"))
	c.leaders[slot{1, s.Term}] = lead.id
	moved("another one was elected", "", led(), errs.New(errs.Conflict, "x"))
	moved("unknown", "", led(), errs.New(errs.OutcomeUnknown, "x"))
	moved("what nobody says", "no such answer", led(), errs.New(errs.Internal, "x"))
	moved("unavailable, long after", "no such answer", led(), errs.New(errs.Unavailable, "x"))
}
