package replica

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/storage"
)

// What raft is told of the log is what is in it, be it kept in memory or not, and however much of it is cut.
func TestLogView_IsTheLog(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	for i := range 5 { // each start has a term of its own
		if i > 0 {
			n.restart()
		}
		r.until("leader", func() bool { return n.host.Shards()[0].Leads })
		for k := range 4 {
			n.do(fmt.Sprintf("k%d=%d", k, i))
		}
	}
	rep := n.host.reps[1]
	v := &rep.view
	first, last := n.log.Bounds(1)
	if len(v.cache) == 0 || v.cacheFrom == first || v.last.Index != last {
		t.Fatalf("%d entries from %d are kept, the log has %d to %d", len(v.cache), v.cacheFrom, first, last)
	}
	check := func() {
		t.Helper()
		for i := range last + 3 {
			got, err := v.Term(i)
			known, knownErr := v.known(i)
			if known != got || !errors.Is(knownErr, err) {
				t.Errorf("at %d: term %d, %v, and known %d, %v", i, got, err, known, knownErr)
			}
			want, logErr := n.log.Term(1, i)
			switch {
			case i < v.before.Index:
				if !errors.Is(err, raft.ErrCompacted) {
					t.Errorf("term of %d, before %d: %v", i, v.before.Index, err)
				}
			case i > last:
				if !errors.Is(err, raft.ErrUnavailable) {
					t.Errorf("term of %d, behind %d: %v", i, last, err)
				}
			case err != nil || logErr != nil || got != want:
				t.Errorf("term of %d is %d, %v; want %d, %v", i, got, err, want, logErr)
			}
		}
		for lo := uint64(1); lo <= last+1; lo++ {
			for hi := lo; hi <= last+2; hi++ {
				for _, maxBytes := range []uint64{0, 1, 300, 1 << 30} {
					got, err := v.Entries(lo, hi, maxBytes)
					if lo <= v.before.Index || hi > last+1 {
						if lo <= v.before.Index && !errors.Is(err, raft.ErrCompacted) || lo > v.before.Index && !errors.Is(err, raft.ErrUnavailable) {
							t.Fatalf("entries %d to %d of %d to %d: %v", lo, hi, v.before.Index+1, last, err)
						}
						continue
					}
					if err != nil || len(got) == 0 && lo < hi || len(got) > int(hi-lo) || maxBytes == 1<<30 && len(got) != int(hi-lo) || maxBytes < 2 && len(got) > 1 {
						t.Fatalf("entries %d to %d, %d bytes: %d, %v", lo, hi, maxBytes, len(got), err)
					}
					size := 0
					for i, e := range got {
						want, err := n.log.Entries(1, lo+uint64(i), lo+uint64(i)+1, 1<<30)
						if err != nil || e.GetIndex() != want[0].Index || e.GetTerm() != want[0].Term || uint8(e.GetType()) != want[0].Type || !bytes.Equal(e.Data, want[0].Data) {
							t.Fatalf("entry %d is %v, want %v, %v", lo+uint64(i), e, want, err)
						}
						if size += len(e.Data); i > 0 && uint64(size) > maxBytes {
							t.Fatalf("entries %d to %d: more than %d bytes", lo, hi, maxBytes)
						}
					}
				}
			}
		}
	}
	check()
	// An entry that is kept by nobody may be one of the log that is being replaced; only what is on its way is certain.
	n.host.logSeq++
	for i := v.before.Index; i <= last; i++ {
		want, _ := v.Term(i)
		got, err := v.known(i)
		if certain := i == v.before.Index || i >= v.cacheFrom; certain && (err != nil || got != want) || !certain && !errors.Is(err, raft.ErrUnavailable) {
			t.Errorf("while the log is written, the term of %d is %d, %v", i, got, err)
		}
	}
	kept, from := v.cache, v.cacheFrom
	v.cache = nil
	for i := v.before.Index; i <= last; i++ {
		if _, err := v.known(i); (err == nil) != (i == v.before.Index || i == last) {
			t.Errorf("while the log is written and nothing is kept, the term of %d: %v", i, err)
		}
	}
	v.cache, v.cacheFrom = kept, from
	n.host.logSeq--
	for _, to := range []uint64{2, 6, v.cacheFrom - 1, v.cacheFrom, v.cacheFrom + 1, last - 1, last} {
		if !v.cut(to) || v.before.Index != to || v.cut(to) || v.cut(last+1) {
			t.Fatalf("cut at %d, it begins behind %d", to, v.before.Index)
		}
		check()
	}
}

// What comes in the place of entries takes that of all behind them, also of those that are kept in memory.
func TestLogView_Append(t *testing.T) {
	ents := func(term uint64, indexes ...uint64) (es []*raftpb.Entry) {
		for _, i := range indexes {
			es = append(es, &raftpb.Entry{Index: new(i), Term: new(term), Data: make([]byte, i)})
		}
		return es
	}
	for what, c := range map[string]struct {
		add  []*raftpb.Entry
		want []uint64 // ten times the index, and the term
	}{
		"nothing":        {nil, []uint64{51, 61, 71}},
		"behind":         {ents(1, 8, 9), []uint64{51, 61, 71, 81, 91}},
		"in the middle":  {ents(2, 6), []uint64{51, 62}},
		"in all places":  {ents(2, 5, 6), []uint64{52, 62}},
		"before":         {ents(2, 4, 5), []uint64{42, 52}},
		"after a gap":    {ents(2, 9), []uint64{92}},
		"for the last":   {ents(2, 7, 8), []uint64{51, 61, 72, 82}},
		"far before all": {ents(2, 1), []uint64{12}},
	} {
		r := &replica{host: &Host{}}
		v := &r.view
		v.append(ents(1, 5, 6, 7))
		v.append(c.add)
		var got []uint64
		for _, e := range v.cache {
			got = append(got, 10*e.GetIndex()+e.GetTerm())
		}
		end := c.want[len(c.want)-1]
		if !slices.Equal(got, c.want) || v.last != (storage.Position{Index: end / 10, Term: end % 10}) {
			t.Errorf("%s: kept %v up to %+v, want %v", what, got, v.last, c.want)
		}
		if err := r.wrong(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Large ones push out those before.
	r := &replica{host: &Host{}}
	for i := range uint64(20) {
		r.view.append([]*raftpb.Entry{{Index: new(i + 1), Term: new(uint64(1)), Data: make([]byte, cacheBytesMax/4-64)}})
		if err := r.wrong(); err != nil || len(r.view.cache) != int(min(i+1, 4)) {
			t.Fatalf("after %d: %d are kept, %v", i+1, len(r.view.cache), err)
		}
	}
	r.view.shrink(0)
	if r.view.cache != nil || r.view.cacheBytes != 0 {
		t.Errorf("%d entries of %d bytes are kept by a shard that sleeps", len(r.view.cache), r.view.cacheBytes)
	}
	r.view.append(ents(1, 21))
	if err := r.wrong(); err != nil {
		t.Error(err)
	}
}

// Large entries may push others out of memory that are still on their way to the log.
func TestLogView_OnTheWayAndNotKept(t *testing.T) {
	r := newRig(t, 1, nil)
	n := r.nodes[0]
	r.until("leader", func() bool { return n.host.Shards()[0].Leads })
	n.do("k=1")
	v := &n.host.reps[1].view
	last := v.last
	for i := range uint64(6) {
		v.append([]*raftpb.Entry{{Index: new(last.Index + 1 + i), Term: new(last.Term), Data: make([]byte, cacheBytesMax/3)}})
	}
	for i := last.Index; i <= v.last.Index; i++ {
		got, err := v.Term(i)
		if kept := i == last.Index || i >= v.cacheFrom; kept && (got != last.Term || err != nil) || !kept && !errors.Is(err, raft.ErrUnavailable) {
			t.Errorf("%d, kept %v: term %d, %v", i, kept, got, err)
		}
	}
	if n.host.err != nil || v.cacheFrom < last.Index+3 {
		t.Errorf("kept from %d on: %v", v.cacheFrom, n.host.err)
	}
}

// A replica that is started again has the term, the vote and the commit index that it had.
func TestLogView_StartsWithWhatWasPromised(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.run(lead.host.cfg.Tick * 3)
	lead.do("k=2")
	was := other.host.reps[1].rn.BasicStatus()
	if was.GetVote() == 0 {
		t.Fatalf("it has no vote: %+v", was)
	}
	r.drop = func(_, _ shard.NodeID, _ byte) bool { return true }
	other.restart()
	now := other.host.reps[1].rn.BasicStatus()
	if now.GetTerm() != was.GetTerm() || now.GetVote() != was.GetVote() || now.GetCommit() < other.host.Machine(1).Applied().Index {
		t.Errorf("it had %+v, and begins with %+v", was.HardState, now.HardState)
	}
}
