package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/shard"
	"github.com/quorate/quorate/internal/shardtest"
)

// fence asks as another model would.
func (x *tester) fence(lock string, token int64, home bool) error {
	_, err := x.submit(EncodeFence([]byte(lock), token, home))
	return err
}

// fenceRules tries what a fence must do on the lock's own shard, and returns the first thing that it does not.
func fenceRules(t *testing.T) error {
	x := newTester(t)
	x.put("lock", "the name itself is no contender")
	x.put("lock0", "nor is what sorts behind the prefix")
	if err := x.fence("lock", 1, true); !errs.Is(err, errs.Fenced) {
		return fmt.Errorf("nobody holds it: %w", err)
	}
	first := x.put("lock/z", "")
	second := x.put("lock/a", "")
	x.put("lock/z", "a new value is the same holder")
	for _, c := range []struct {
		token int64
		ok    bool
	}{{first, true}, {second, false}, {first - 1, false}, {second + 1, false}, {first, true}} {
		if err := x.fence("lock", c.token, true); c.ok != (err == nil) || err != nil && !errs.Is(err, errs.Fenced) {
			return fmt.Errorf("token %d, held by %d: %w", c.token, first, err)
		}
		if _, err := x.query(EncodeFence([]byte("lock"), c.token, true)); c.ok != (err == nil) {
			return fmt.Errorf("asked about token %d, held by %d: %w", c.token, first, err)
		}
	}
	x.must(&Delete{Key: []byte("lock/z")})
	if err := x.fence("lock", first, true); !errs.Is(err, errs.Fenced) || !strings.Contains(err.Error(), fmt.Sprintf("token %d does", second)) {
		return fmt.Errorf("token %d after %d has it: %w", first, second, err)
	}
	if err := x.fence("lock", second, true); err != nil {
		return fmt.Errorf("the next holder: %w", err)
	}
	if again := x.put("lock/z", ""); again != second {
		if err := x.fence("lock", again, true); !errs.Is(err, errs.Fenced) {
			return fmt.Errorf("the old key, created again at %d: %w", again, err)
		}
	}
	return nil
}

func TestFence_OnTheLocksShardTheHolderOnly(t *testing.T) {
	if err := fenceRules(t); err != nil {
		t.Error(err)
	}
}

func TestFence_ElsewhereTheNewestTokenThatWasSeen(t *testing.T) {
	x := newTester(t)
	for i, c := range []struct {
		lock  string
		token int64
		ok    bool
	}{
		{"a", 5, true}, {"a", 5, true}, {"a", 4, false}, {"b", 4, true}, {"a", 9, true}, {"a", 5, false}, {"b", 4, true}, {"a/b", 1, true}, {"a", 9, true},
	} {
		rev := x.Machine(1).Revision()
		err := x.fence(c.lock, c.token, false)
		if c.ok != (err == nil) || err != nil && !errs.Is(err, errs.Fenced) {
			t.Errorf("%d: token %d of %s: %v", i, c.token, c.lock, err)
		}
		if err != nil && x.Machine(1).Revision() != rev {
			t.Errorf("%d: what was refused has written", i)
		}
	}
	// What repeats is only read.
	rev := x.Machine(1).Revision()
	if err := x.fence("a", 9, false); err != nil || x.Machine(1).Revision() != rev {
		t.Errorf("the same token again: %v, revision %d after %d", err, x.Machine(1).Revision(), rev)
	}
	if _, err := x.query(EncodeFence([]byte("a"), 9, false)); err == nil {
		t.Error("a query elsewhere was answered, which cannot know")
	}
}

func TestFence_BadRequests(t *testing.T) {
	x := newTester(t)
	for _, c := range []struct {
		lock  string
		token int64
	}{{"", 1}, {"l", 0}, {"l", -1}, {strings.Repeat("l", LockNameMax+1), 1}} {
		for _, home := range []bool{true, false} {
			if err := x.fence(c.lock, c.token, home); !errs.Is(err, errs.Invalid) {
				t.Errorf("%.10q %d: %v", c.lock, c.token, err)
			}
		}
	}
	if err := x.fence(strings.Repeat("l", LockNameMax), 1, false); err != nil {
		t.Errorf("the longest name: %v", err)
	}
}

// TestFence_Model compares what a shard accepts elsewhere than the locks' own with a model that forgets nothing: it may refuse more, never
// less, and only under tokens as old as what it forgot.
func TestFence_Model(t *testing.T) {
	x := newTester(t)
	rng := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int64{}
	token, refused := int64(0), 0
	var used []int64
	for i := range FencesMax + 3000 {
		token++
		use, lock := token, fmt.Sprintf("l%d", i)
		if rng.IntN(20) == 0 && i > 0 {
			lock = fmt.Sprintf("l%d", rng.IntN(i))
		}
		if rng.IntN(20) == 0 && i > 0 {
			use = used[rng.IntN(len(used))]
		}
		used = append(used, use)
		err := x.fence(lock, use, false)
		switch {
		case err == nil && use < seen[lock]:
			t.Fatalf("token %d of %s passed after %d", use, lock, seen[lock])
		case errs.Is(err, errs.Fenced) && use >= seen[lock]:
			// Forgotten: FencesMax other locks have newer tokens.
			newer := 0
			for _, tok := range seen {
				if tok >= use {
					newer++
				}
			}
			if refused++; newer < FencesMax {
				t.Fatalf("token %d of %s was refused, though only %d locks have newer ones: %v", use, lock, newer, err)
			}
		case err != nil && !errs.Is(err, errs.Fenced):
			t.Fatal(err)
		case err == nil:
			seen[lock] = max(seen[lock], use)
		}
	}
	rows := map[byte]int{}
	for k := range dumpRows(t, x.Machine(1)) {
		rows[k[0]]++
	}
	if rows[rowFence] != FencesMax || rows[rowFenceOrder] != FencesMax || rows[rowFences] != 1 || refused == 0 || len(seen) < FencesMax+500 {
		t.Errorf("rows %v after %d locks, %d refused", rows, len(seen), refused)
	}
	// A token as old as the oldest that is remembered is refused, which may be that of a lock that was forgotten.
	oldest := slices.Min(slices.Collect(func(yield func(string) bool) {
		for k := range dumpRows(t, x.Machine(1)) {
			if k[0] == rowFenceOrder && !yield(k) {
				return
			}
		}
	}))
	if err := x.fence("as old", int64(binary.BigEndian.Uint64([]byte(oldest[1:9]))), false); !errs.Is(err, errs.Fenced) {
		t.Errorf("a token as old as the oldest: %v", err)
	}
	// Whoever acquires a lock that was forgotten gets through.
	if err := x.fence("l0", token+1, false); err != nil {
		t.Error(err)
	}
}

// caller is a model that does what a command says under a fence, and leaves a trace.
type caller struct{}

func (caller) ID() shard.ModuleID { return shard.ModuleDatatypes }

func (caller) Apply(tx *shard.Tx, cmd []byte) ([]byte, error) {
	tx.Set([]byte("trace"), cmd)
	return tx.Call(shard.Command{Module: shard.ModuleKV, Data: cmd})
}

func (caller) Query(shard.View, []byte) ([]byte, error) { return nil, errors.New("not asked") }
func (caller) Fire(*shard.Tx, []byte) error             { return nil }

func TestFence_Conformance(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var steps, calls []shardtest.Step
	add := func(cmd []byte) { steps = append(steps, shardtest.Step{After: time.Millisecond, Cmd: cmd}) }
	for range 300 {
		lock := []byte(fmt.Sprintf("l%d", rng.IntN(4)))
		key := fmt.Appendf(slices.Clone(lock), "/%d", rng.IntN(3))
		switch rng.IntN(5) {
		case 0:
			add(EncodeOp(&Put{Key: key}))
		case 1:
			add(EncodeOp(&Delete{Key: key}))
		case 2:
			add(EncodeFence(lock, 1+rng.Int64N(120), true))
		default:
			add(EncodeFence(lock, 1+rng.Int64N(120), false))
			calls = append(calls, steps[len(steps)-1])
		}
	}
	shardtest.Conformance(t, []shard.Module{Module{}}, shard.ModuleKV, steps)
	shardtest.Conformance(t, []shard.Module{Module{}, caller{}}, shard.ModuleDatatypes, calls)
}

func TestFence_Golden(t *testing.T) {
	f := fences{count: 3, floor: 300}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"at home", EncodeFence([]byte("lock"), 300, true), "0130" + "046c6f636b" + "ac02" + "01"},
		{"elsewhere", EncodeFence([]byte("l"), 1, false), "0130" + "016c" + "01" + "00"},
		{"newest token", fenceKey([]byte("l")), "66" + "6c"},
		{"order", fenceOrderKey(300, []byte("l")), "74" + "000000000000012c" + "6c"},
		{"all", f.encode(), "03" + "ac02"},
	} {
		if got := fmt.Sprintf("%x", c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// BenchmarkFence is a fence on the lock's own shard, which goes through all contenders.
func BenchmarkFence(b *testing.B) {
	for _, n := range []int{1, 10, 200} {
		b.Run(fmt.Sprintf("%d contenders", n), func(b *testing.B) {
			x := &tester{nil, shardtest.New(b, shardtest.Options{}, Module{})}
			for i := range n {
				if _, err := x.submit(EncodeOp(&Put{Key: fmt.Appendf(nil, "l/%d", i)})); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if err := x.fence("l", 2, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
