package replica

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// Entries go to the disk before older ones are applied, which the turn after does at once.
func TestApply_WaitsForWhatIsToBeWritten(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("a=1")
	// The news that the first is committed comes along with the second.
	lead.propose("b=2", 0)
	before := other.counts.Commands
	r.holdSync[other.id] = true
	out := other.turn()
	if len(out.Writes) != 1 || len(out.Writes[0].Entries) != 1 {
		t.Fatalf("the follower writes %+v, want one entry", out.Writes)
	}
	if got := other.counts.Commands - before; got != 0 {
		t.Errorf("%d commands were applied before the entry went to the disk", got)
	}
	if out.Wake.After(r.now) {
		t.Errorf("the next turn is due %v later, want at once", out.Wake.Sub(r.now))
	}
	other.turn()
	if got := other.counts.Commands - before; got != 1 {
		t.Errorf("%d commands were applied in the next turn, want 1", got)
	}
	if v := other.get("a"); v != "1" {
		t.Errorf("the follower has a=%q", v)
	}
}

// A leader's answers do not wait for a turn of their own.
func TestApply_AnswersInTheTurnThatCommits(t *testing.T) {
	r := newRig(t, 1, nil)
	lead := r.nodes[0]
	r.until("leader", func() bool { return lead.host.Shards()[0].Leads })
	r.holdSync[lead.id] = true
	f := lead.propose("a=1", 0)
	r.settle()
	lead.sync()
	lead.turn()
	if _, ok := lead.results[f]; !ok {
		t.Error("the command was not answered when it was durable")
	}
}

// Small commands may have large answers, and many of them are in one entry. What a turn's answers hold is bounded, whatever shards they are from.
func TestApply_LargeAnswersAreBounded(t *testing.T) {
	const room = 100_000
	r := newRig(t, 1, func(c *Config) { c.Shards, c.AnswerBytesMax = []shard.ID{1, 2}, room })
	n := r.nodes[0]
	r.until("leaders", func() bool { s := n.host.Shards(); return s[0].Leads && s[1].Leads })
	// ask runs commands, each with its shard in front, in one turn. It returns what became of them.
	ask := func(cmds ...string) (got []string) {
		t.Helper()
		var in []Input
		var futures []*shard.Future
		for _, cmd := range cmds {
			f := shard.NewFuture()
			futures = append(futures, f)
			in = append(in, Propose{Shard: shard.ID(cmd[0] - '0'), Command: shard.Command{Module: 9, Data: []byte(cmd[1:])}, Future: f})
		}
		r.holdSync[n.id] = true
		n.turn(in...)
		r.settle()
		r.holdSync[n.id] = false
		n.sync()
		r.until("answers", func() bool { return len(n.results) > 0 && n.results[futures[len(futures)-1]].Revision > 0 })
		for i, f := range futures {
			res := n.results[f]
			switch e, _ := res.Err.(*errs.Error); { //nolint:errorlint // the outermost error is what a client gets
			case res.Err == nil:
				got = append(got, strconv.Itoa(len(res.Data)))
			case e != nil && e.Kind == errs.OutcomeUnknown && e.Code == "UNKNOWN" && res.Revision > 0:
				got = append(got, "done")
			default:
				t.Errorf("%s: %+v", cmds[i], res)
			}
		}
		return got
	}
	for range 2 {
		want := []string{"60000", "40000", "4096", "done", "7", "done", "4096"}
		if got := ask("1?a=60000", "1?b=40000", "1?c=4096", "1?d=4097", "1e=5", "2?f=60000", "2?g=4096"); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := n.get("d"); got != "4097" {
			t.Errorf("the command without an answer has stored %q", got)
		}
		// The first large answer has room in any case.
		want = []string{"7", "200000", "done"}
		if got := ask("1e=5", "1?a=200000", "1?b=5000"); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Turns that always have something to write do not keep what is committed from being applied for ever.
func TestApply_IsPutOffAFewTimesOnly(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("a=1")
	lead.propose("b=2", 0)
	other.turn()
	h := other.host
	h.out.Writes = []storage.Write{{Shard: 1}}
	for i := 1; i < deferMax; i++ {
		if !h.deferApply() {
			t.Fatalf("put off %d times, want %d", i, deferMax)
		}
	}
	if h.deferApply() {
		t.Errorf("put off more than %d times", deferMax)
	}
	h.out.Writes = nil
	r.settle()
	if v := other.get("a"); v != "1" {
		t.Errorf("the follower has a=%q", v)
	}
}

// Whoever waits for keys of a shard hears on each node which of them were changed.
func TestApply_ChangedKeysAreTold(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.Shards = []shard.ID{1, 2} })
	r.elect()
	r.until("leaders", func() bool { return r.nodes[0].host.Shards()[1].Leader != 0 })
	for id := range shard.ID(2) {
		told := map[shard.NodeID]string{}
		r.woken = func(n shard.NodeID, w ShardWakes) {
			for _, k := range w.Wakes {
				told[n] += fmt.Sprintf("%d/%d/%s ", w.Shard, k.Module, k.Key)
			}
		}
		cmd := shard.Command{Module: 9, Data: []byte("key=v")}
		r.nodes[0].turn(Propose{Shard: 1 + id, Command: cmd, Future: shard.NewFuture()})
		r.run(time.Second)
		for _, n := range r.nodes {
			if want := fmt.Sprintf("%d/9/key ", 1+id); told[n.id] != want {
				t.Errorf("node %d was told %q, want %q", n.id, told[n.id], want)
			}
		}
	}
}

// A node that starts with much to apply does not do it all in one turn: its peers would take it for gone.
func TestApply_MuchIsDoneInManyTurns(t *testing.T) {
	const shards = 4
	r := newRig(t, 1, func(c *Config) {
		c.Shards, c.BatchBytesMax = nil, turnBytes/2
		for i := range shards {
			c.Shards = append(c.Shards, shard.ID(1+i))
		}
	})
	n := r.nodes[0]
	r.until("leaders", func() bool {
		return !slices.ContainsFunc(n.host.Shards(), func(s ShardStatus) bool { return !s.Leads })
	})
	cmd := shard.Command{Module: 9, Data: append([]byte("k="), bytes.Repeat([]byte("v"), turnBytes/2)...)}
	for range 3 {
		for id := range shards {
			n.turn(Propose{Shard: shard.ID(1 + id), Command: cmd, Future: shard.NewFuture()})
			r.run(10 * time.Millisecond)
		}
	}
	want := n.host.Shards()
	n.stop()
	n.dropState()
	n.start(false)
	for turns := 0; ; turns++ {
		before, changed := n.host.Shards(), 0
		n.turn()
		done := true
		for i, s := range n.host.Shards() {
			if s.Applied != before[i].Applied {
				changed++
			}
			done = done && s.Applied >= want[i].Applied
		}
		if changed > 1 {
			t.Fatalf("turn %d has applied what %d shards had", turns, changed)
		}
		if done {
			if turns < shards-1 {
				t.Errorf("all is applied after %d turns", turns+1)
			}
			break
		}
		if turns > 100 {
			t.Fatalf("after %d turns: %s", turns, r.status())
		}
		if n.wake.After(r.now) && len(n.inbox) == 0 {
			r.now = n.wake
		}
	}
}
