package eventlog

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

func (w *world) joinState(group, id string) (JoinState, error) {
	b, err := w.ask(QueryJoin(group, id, ""))
	if err != nil {
		return JoinState{}, err
	}
	return DecodeJoinState(b)
}

func (w *world) syncState(group, id string, generation int32) (SyncState, error) {
	b, err := w.ask(QuerySync(group, id, "", generation))
	if err != nil {
		return SyncState{}, err
	}
	return DecodeSyncState(b)
}

func (w *world) info(group string) GroupInfo {
	w.t.Helper()
	b, err := w.ask(QueryGroup(group))
	if err != nil {
		w.t.Fatalf("group: %v", err)
	}
	g, err := DecodeGroup(b)
	if err != nil {
		w.t.Fatalf("group: %v", err)
	}
	return g
}

func joinAs(id, newID, instance string) Join {
	return Join{
		Group: "g", MemberID: id, NewID: newID, Instance: instance, ProtocolType: "consumer",
		Protocols: []Protocol{{"range", []byte("m")}}, SessionMs: 10_000, RebalanceMs: 30_000, DelayMs: 200,
	}
}

// TestGroup_RandomLivesKeepItsRules lets members join, sync, beat, leave and fall silent at random, and checks what must
// hold at each step: generations never go back, one assignment a generation, each partition with one owner, and commits
// by the present generation only.
func TestGroup_RandomLivesKeepItsRules(t *testing.T) {
	const partitions = 12
	for seed := range uint64(30) {
		w := newWorld(t)
		r := rand.New(rand.NewPCG(seed, 7))
		type actor struct {
			id, instance string
			generation   int32
			joining      bool
			synced       bool
		}
		var actors []*actor
		names, last := 0, int32(-1)
		// owners holds who owns what, by generation.
		owners := map[int32]map[string]string{}
		committed := int64(0)
		forget := func(a *actor) { a.id, a.joining, a.synced, a.generation = "", false, false, -1 }
		for i := range 6 {
			a := &actor{generation: -1}
			if i >= 4 {
				a.instance = fmt.Sprint("static", i)
			}
			actors = append(actors, a)
		}
		stable := 0
		for range 600 {
			a := actors[r.IntN(len(actors))]
			switch r.IntN(12) {
			case 0, 1, 2:
				names++
				j := joinAs(a.id, "", a.instance)
				if a.id == "" {
					j.NewID = fmt.Sprint("m", names)
				}
				j.RequireID = a.instance == "" && r.IntN(2) == 0
				if r.IntN(4) == 0 {
					j.Protocols[0].Metadata = fmt.Append(nil, "m", r.IntN(3))
				}
				b, err := w.do(EncodeJoin(j))
				if err != nil {
					if code(err) != CodeUnknownMember && code(err) != CodeFencedInstance {
						t.Fatalf("seed %d: join: %v", seed, err)
					}
					forget(a)
					break
				}
				id, comeBack, err := DecodeJoined(b)
				if err != nil {
					t.Fatal(err)
				}
				a.id, a.joining, a.synced = id, !comeBack, false
			case 3, 4, 5, 6:
				if a.id == "" {
					break
				}
				if a.joining {
					st, err := w.joinState("g", a.id)
					if err != nil {
						forget(a)
						break
					}
					if st.Waiting {
						break
					}
					if st.Generation < a.generation {
						t.Fatalf("seed %d: generation went from %d to %d", seed, a.generation, st.Generation)
					}
					a.generation, a.joining = st.Generation, false
					s := Sync{Group: "g", MemberID: a.id, Instance: a.instance, Generation: st.Generation}
					if st.Leader == a.id && !st.Assigned {
						for i, m := range st.Members {
							data := []byte{byte(st.Generation)}
							for p := i; p < partitions; p += len(st.Members) {
								data = append(data, byte(p))
							}
							s.Assignments = append(s.Assignments, Assignment{m.ID, data})
						}
					}
					if _, err := w.do(EncodeSync(s)); err != nil {
						if code(err) == CodeUnknownMember || code(err) == CodeFencedInstance {
							forget(a)
						}
						break
					}
					a.synced = true
				}
				if a.synced {
					st, err := w.syncState("g", a.id, a.generation)
					if err != nil || st.Waiting {
						break
					}
					if len(st.Assignment) > 0 {
						if st.Assignment[0] != byte(a.generation) {
							t.Fatalf("seed %d: assignment of generation %d in %d", seed, st.Assignment[0], a.generation)
						}
						own := owners[a.generation]
						if own == nil {
							own = map[string]string{}
							owners[a.generation] = own
						}
						who := a.id
						if a.instance != "" {
							who = a.instance
						}
						for _, p := range st.Assignment[1:] {
							k := fmt.Sprint(p)
							if o := own[k]; o != "" && o != who {
								t.Fatalf("seed %d: partition %s of generation %d belongs to %s and %s", seed, k, a.generation, o, who)
							}
							own[k] = who
						}
						stable++
					}
				}
			case 7, 8:
				if a.id != "" {
					if _, err := w.do(EncodeHeartbeat("g", a.id, a.instance, a.generation)); code(err) == CodeUnknownMember || code(err) == CodeFencedInstance {
						forget(a)
					}
				}
			case 9:
				committed++
				gen := a.generation - int32(r.IntN(2))
				c := Commit{Group: "g", MemberID: a.id, Instance: a.instance, Generation: gen, Offsets: []CommittedOffset{{Topic: "t", Offset: committed}}}
				before, had := (GroupInfo{}), false
				if b, err := w.ask(QueryGroup("g")); err == nil {
					before, _ = DecodeGroup(b)
					had = true
				}
				_, err := w.do(EncodeCommit(c))
				if err == nil && a.id != "" && (!had || gen != before.Generation || before.State == GroupEmpty || before.State == GroupCompleting) {
					t.Fatalf("seed %d: commit of generation %d accepted in %d %v", seed, gen, before.Generation, before.State)
				}
			case 10:
				if r.IntN(3) == 0 && a.id != "" {
					w.must(EncodeLeave("g", []Leaver{{a.id, ""}}))
					forget(a)
				}
			case 11:
				w.c.Advance(time.Duration(r.IntN(4000)) * time.Millisecond)
			}
			if b, err := w.ask(QueryGroup("g")); err == nil {
				g, err := DecodeGroup(b)
				if err != nil {
					t.Fatal(err)
				}
				if g.Generation < last {
					t.Fatalf("seed %d: generation went from %d to %d", seed, last, g.Generation)
				}
				last = g.Generation
				if (g.State == GroupEmpty) != (len(g.Members) == 0) {
					t.Fatalf("seed %d: %v with %d members", seed, g.State, len(g.Members))
				}
			}
		}
		if stable == 0 {
			t.Errorf("seed %d: the group never worked", seed)
		}
		// Left alone, every session ends.
		for range 10 {
			w.c.Advance(time.Minute)
		}
		if g := w.info("g"); g.State != GroupEmpty {
			t.Errorf("seed %d: silent group is %v", seed, g.State)
		}
	}
}

func TestGroup_PendingMemberHoldsUpAndExpires(t *testing.T) {
	w := newWorld(t)
	w.must(EncodeJoin(joinAs("", "a", "")))
	w.c.Advance(time.Second)
	if st, err := w.joinState("g", "a"); err != nil || st.Waiting || st.Generation != 1 || len(st.Members) != 1 {
		t.Fatalf("first: %+v, %v", st, err)
	}
	w.must(EncodeSync(Sync{Group: "g", MemberID: "a", Generation: 1, Assignments: []Assignment{{"a", []byte("x")}}}))
	j := joinAs("", "b", "")
	j.RequireID = true
	if _, again, _ := DecodeJoined(w.must(EncodeJoin(j))); !again {
		t.Fatal("no id was handed out")
	}
	if g := w.info("g"); g.State != GroupStable {
		t.Errorf("handing out an id moved the group to %v", g.State)
	}
	// A member whose id is still out is waited for.
	w.must(EncodeJoin(joinAs("", "c", "")))
	w.must(EncodeJoin(joinAs("a", "", "")))
	if g := w.info("g"); g.State != GroupPreparing {
		t.Errorf("with an id out: %v", g.State)
	}
	if errs, err := DecodeLeft(w.must(EncodeLeave("g", []Leaver{{"b", ""}, {"none", ""}}))); err != nil || errs[0] != nil || code(errs[1]) != CodeUnknownMember {
		t.Errorf("leave: %v, %v", errs, err)
	}
	if g := w.info("g"); g.State != GroupCompleting || g.Generation != 2 {
		t.Errorf("after it left: %v %d", g.State, g.Generation)
	}
	// The leader never assigns: the group's deadline removes it, and the rest starts over.
	if _, err := w.do(EncodeSync(Sync{Group: "g", MemberID: "c", Generation: 2})); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		w.c.Advance(5 * time.Second)
		_, _ = w.do(EncodeHeartbeat("g", "a", "", 2))
		_, _ = w.do(EncodeHeartbeat("g", "c", "", 2))
	}
	if g := w.info("g"); len(g.Members) != 1 || g.Members[0].ID != "c" || g.State != GroupPreparing {
		t.Errorf("after the leader's silence: %+v", g)
	}
}

func TestGroup_IdleIsForgotten(t *testing.T) {
	w := newWorld(t)
	var list []CommittedOffset
	for i := range int32(1200) {
		list = append(list, CommittedOffset{Topic: "t", Partition: i, Offset: int64(i)})
	}
	w.must(EncodeCommit(Commit{Group: "g", Generation: -1, Offsets: list}))
	b, err := w.ask(QueryCommits("g", true, nil))
	if got, err2 := DecodeCommits(b); err != nil || err2 != nil || len(got) != 1200 || got[7] != list[7] {
		t.Errorf("offsets: %d, %v, %v", len(got), err, err2)
	}
	w.c.Advance(6 * 24 * time.Hour)
	w.must(EncodeCommit(Commit{Group: "g", Generation: -1, Offsets: list[:1]}))
	w.c.Advance(6 * 24 * time.Hour)
	if g := w.info("g"); g.State != GroupEmpty {
		t.Errorf("group %+v", g)
	}
	w.c.Advance(2 * 24 * time.Hour)
	if _, err := w.ask(QueryGroup("g")); code(err) != "not found" {
		t.Errorf("idle group: %v", err)
	}
	b, _ = w.ask(QueryCommits("g", true, nil))
	if got, err := DecodeCommits(b); err != nil || len(got) != 0 {
		t.Errorf("offsets after all: %d, %v", len(got), err)
	}
}

func TestGroup_Bounds(t *testing.T) {
	w := newWorld(t)
	for i := range GroupMembersMax {
		j := joinAs("", fmt.Sprint("m", i), "")
		w.must(EncodeJoin(j))
	}
	if _, err := w.do(EncodeJoin(joinAs("", "more", ""))); code(err) != CodeGroupFull {
		t.Errorf("one member too many: %v", err)
	}
	long := make([]byte, MemberBytesMax+1)
	for name, f := range map[string]func(*Join){
		"session":   func(j *Join) { j.SessionMs = 0 },
		"rebalance": func(j *Join) { j.RebalanceMs = -1 },
		"delay":     func(j *Join) { j.DelayMs = -1 },
		"ids":       func(j *Join) { j.NewID = "" },
		"id long":   func(j *Join) { j.ClientID = string(long) },
		"protocols": func(j *Join) { j.Protocols = make([]Protocol, protocolsMax+1) },
		"empty":     func(j *Join) { j.Protocols = []Protocol{{}} },
		"metadata":  func(j *Join) { j.Protocols[0].Metadata = long },
		"name":      func(j *Join) { j.Group = "" },
	} {
		j := joinAs("", "x", "")
		f(&j)
		if _, err := w.do(EncodeJoin(j)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, o := range map[string]CommittedOffset{
		"topic": {}, "long topic": {Topic: string(long[:300])}, "offset": {Topic: "t", Offset: -2},
		"metadata": {Topic: "t", Metadata: string(long[:OffsetMetadataMax+1])},
	} {
		if _, err := w.do(EncodeCommit(Commit{Group: "c", Generation: -1, Offsets: []CommittedOffset{o}})); err == nil {
			t.Errorf("commit with bad %s: accepted", name)
		}
	}
	if _, err := w.do(EncodeSync(Sync{Group: "g", MemberID: "m1", Assignments: []Assignment{{"m1", make([]byte, AssignmentBytesMax+1)}}})); code(err) != "too large" {
		t.Errorf("assignments: %v", err)
	}
	b, err := w.ask(QueryGroups())
	if list, err2 := DecodeGroups(b); err != nil || err2 != nil || len(list) != 1 || list[0].Name != "g" {
		t.Errorf("groups: %+v, %v, %v", list, err, err2)
	}
}

// TestModule_Conformance runs a mixed log through what the engine expects of every module.
func TestModule_Conformance(t *testing.T) {
	var steps []shardtest.Step
	add := func(after time.Duration, cmd []byte) { steps = append(steps, shardtest.Step{After: after, Cmd: cmd}) }
	add(0, EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2, RetentionMs: 5000, RetentionBytes: 2000}))
	add(0, EncodeCreateTopic(Topic{ID: topicA, Name: "t", Partitions: 2}))
	seq := int32(0)
	r := rand.New(rand.NewPCG(1, 2))
	gens := int32(0)
	for i := range 600 {
		d := time.Duration(r.IntN(300)) * time.Millisecond
		switch r.IntN(10) {
		case 0, 1:
			add(d, EncodeAppend([]Append{{topicA, 0, from(9, 0, seq, 2), 0}, {topicA, 1, batchOf(1_700_000_000_000 + int64(i)*100), 0}}, false))
			if r.IntN(4) > 0 {
				seq += 2
			}
		case 2, 3:
			add(d, AppendEvent(nil, topicA, int32(i%2), []byte("k"), i%3 == 0, []byte("v"), nil, nil))
		case 4:
			add(d, EncodeInitProducer())
		case 5:
			j := joinAs("", fmt.Sprint("m", i), "")
			j.RequireID = i%2 == 0
			add(d, EncodeJoin(j))
		case 6:
			j := joinAs("", fmt.Sprint("s", i), "static")
			add(d, EncodeJoin(j))
			gens++
		case 7:
			add(d, EncodeSync(Sync{Group: "g", MemberID: fmt.Sprint("s", i-1), Generation: gens}))
		case 8:
			add(d, EncodeCommit(Commit{Group: fmt.Sprint("g", i%3), Generation: -1, Offsets: []CommittedOffset{{Topic: "t", Offset: int64(i)}}}))
		case 9:
			add(d, EncodeLeave("g", []Leaver{{"", "static"}}))
		}
	}
	add(48*time.Hour, EncodeInitProducer())
	add(20*24*time.Hour, EncodeInitProducer())
	shardtest.Conformance(t, []shard.Module{Module{}}, shard.ModuleEventlog, steps)
}

// BenchmarkEvent measures the append that goes with a change of state.
func BenchmarkEvent(b *testing.B) {
	c := shardtest.New(b, shardtest.Options{}, Module{})
	cmd := shard.Command{Module: shard.ModuleEventlog, Data: AppendEvent(nil, topicA, 0, []byte("key"), false, make([]byte, 100), nil, nil)}
	b.ReportAllocs()
	for b.Loop() {
		if r := c.Submit(b.Context(), shard.Route{Shard: 1}, cmd).Wait(b.Context()); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}
