package shard

import (
	"math/rand/v2"
	"testing"
	"time"
)

// counter makes a machine count how often commands of batches were run.
func counter(t *testing.T) (*bench, func(session, seq, low uint64) Applied) {
	b := newBench(t, MachineConfig{})
	b.mod.apply["n"] = func(tx *Tx) ([]byte, error) {
		v, _ := tx.Get([]byte("n"))
		tx.Set([]byte("n"), append(v, 'x'))
		return nil, nil
	}
	return b, func(session, seq, low uint64) Applied {
		t.Helper()
		return b.entry(b.batch(BatchHeader{Session: session, Seq: seq, Low: low, Stamp: b.now}, "n"))
	}
}

func TestSession_DuplicateIsAppliedOnce(t *testing.T) {
	b, send := counter(t)
	if out := send(1, 1, 1); out.Duplicates != 0 || len(out.Answers) != 1 || out.Answers[0].Pos != 0 {
		t.Errorf("first: %+v", out)
	}
	out := send(1, 1, 1)
	if out.Duplicates != 1 || len(out.Answers) != 1 || out.Answers[0].Pos != -1 || out.Commands != 0 {
		t.Errorf("again: %+v", out)
	}
	b.want("n", "x")
	// Another node hears of the duplicate, but it is not its to answer.
	out = Applied{Own: 2}
	if err := b.m.Apply(b.m.Applied().Index+1, 1, b.batch(BatchHeader{Session: 1, Seq: 1, Low: 1, Stamp: b.now}, "n"), &out); err != nil {
		t.Fatal(err)
	}
	if out.Duplicates != 1 || len(out.Answers) != 0 {
		t.Errorf("elsewhere: %+v", out)
	}
}

func TestSession_OutOfOrderBatchesAreEachAppliedOnce(t *testing.T) {
	b, send := counter(t)
	for _, seq := range []uint64{3, 1, 200, 2, 3, 1, 2, 200, 64, 65} {
		send(1, seq, 1)
	}
	b.want("n", "xxxxxx")
	if low := b.m.sessions[1].low; low != 4 {
		t.Errorf("low is %d, want 4", low)
	}
	for seq, want := range map[uint64]bool{1: true, 3: true, 4: false, 63: false, 64: true, 65: true, 66: false, 200: true, 201: false} {
		if got := b.m.SessionApplied(1, seq); got != want {
			t.Errorf("batch %d applied: %v, want %v", seq, got, want)
		}
	}
	if b.m.SessionApplied(99, 1) || b.m.sessions[99] != nil {
		t.Errorf("a session that never was is known")
	}
	// The table comes back as it was.
	b.open()
	if b.m.sessions[1].low != 4 || !b.m.SessionApplied(1, 65) || b.m.SessionApplied(1, 66) {
		t.Errorf("reopened with low %d", b.m.sessions[1].low)
	}
}

func TestSession_LowMarkSettlesWhatIsBelow(t *testing.T) {
	b, send := counter(t)
	send(1, 5, 1)
	send(1, 100, 100)
	if out := send(1, 7, 1); out.Duplicates != 1 {
		t.Errorf("a batch below the low mark was applied")
	}
	b.want("n", "xx")
	if low := b.m.sessions[1].low; low != 101 {
		t.Errorf("low is %d, want 101", low)
	}
}

func TestSession_WindowRefusesWhatIsTooFarAhead(t *testing.T) {
	b, send := counter(t)
	if out := send(1, 1+sessionWindow, 1); out.Duplicates != 1 {
		t.Errorf("a batch beyond the window was applied")
	}
	if out := send(1, sessionWindow, 1); out.Duplicates != 0 {
		t.Errorf("the last batch of the window was refused")
	}
	if n := len(b.m.sessions[1].bits); n > sessionWindow/64 {
		t.Errorf("the window takes %d words", n)
	}
}

func TestSession_NoSessionIsNeverADuplicate(t *testing.T) {
	b, send := counter(t)
	send(0, 1, 1)
	send(0, 1, 1)
	b.want("n", "xx")
}

func TestSession_OldIdleOnesAreForgotten(t *testing.T) {
	b, send := counter(t)
	send(1, 1, 1)
	send(2, 1, 1)
	b.now = b.now.Add(20 * time.Hour)
	send(2, 2, 2)
	for id := uint64(3); id <= sessionsKept+1; id++ {
		send(id, 1, 1)
	}
	b.now = b.now.Add(20 * time.Hour)
	check := func(what string, n int, first bool) {
		t.Helper()
		if len(b.m.sessions) != n || (b.m.sessions[1] != nil) != first || b.m.sessions[2] == nil {
			t.Errorf("%s: %d sessions, the first is there: %v; want %d and %v", what, len(b.m.sessions), b.m.sessions[1] != nil, n, first)
		}
	}
	check("before a new one comes", sessionsKept+1, true)
	send(1000, 1, 1)
	check("afterwards", sessionsKept+1, false)
	b.open()
	check("reopened", sessionsKept+1, false)
}

// However many sessions there are, what one of the last day has applied is not applied again.
func TestSession_YoungOnesAreAllRemembered(t *testing.T) {
	b, send := counter(t)
	const n = 2*sessionsKept + 10
	for id := uint64(1); id <= n; id++ {
		send(id, 1, 1)
	}
	b.now = b.now.Add(23 * time.Hour)
	send(n+1, 1, 1)
	for id := uint64(1); id <= n; id++ {
		if out := send(id, 1, 1); out.Duplicates != 1 {
			t.Fatalf("a batch of session %d of %d is applied again", id, n)
		}
	}
}

// Which of several that are as old as each other is forgotten is the same on all replicas.
func TestSession_TheSameAreForgottenEverywhere(t *testing.T) {
	b, send := counter(t)
	const n = 3 * sessionsKept
	for id := uint64(1); id <= n; id++ {
		send(id, 1, 1)
	}
	b.now = b.now.Add(25 * time.Hour)
	send(n+1, 1, 1)
	for id := uint64(1); id <= n; id++ {
		if got, want := b.m.SessionApplied(id, 1), id > n-sessionsKept; got != want {
			t.Errorf("session %d is remembered: %v, want %v", id, got, want)
		}
	}
}

// The clock of a new leader may be wrong by a day; what an older one has applied is not applied again all the same.
func TestSession_SurvivesALeadersClock(t *testing.T) {
	b, send := counter(t)
	send(5, 1, 1)
	b.now = b.now.Add(48 * time.Hour)
	send(6, 1, 1)
	send(5, 1, 1)
	b.want("n", "xx")
}

// TestSession_AgainstModel compares the bit table with a plain set.
func TestSession_AgainstModel(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := &Machine{sessions: map[uint64]*session{}}
		applied, low := map[uint64]bool{}, uint64(1)
		for range 400 {
			seq := low + uint64(rng.IntN(200)) - min(uint64(rng.IntN(20)), low-1)
			if rng.IntN(5) == 0 {
				low += uint64(rng.IntN(150))
			}
			got := m.admit(BatchHeader{Session: 1, Seq: seq, Low: low})
			want := seq >= low && !applied[seq]
			if got != want {
				t.Fatalf("seed %d: batch %d with low %d admitted: %v, want %v", seed, seq, low, got, want)
			}
			if want {
				applied[seq] = true
			}
			for s := low; s < low+300; s++ {
				if m.SessionApplied(1, s) != applied[s] {
					t.Fatalf("seed %d: batch %d applied: %v, want %v", seed, s, !applied[s], applied[s])
				}
			}
		}
	}
}
