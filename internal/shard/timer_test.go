package shard

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// alarm makes a bench whose module records what fires.
func alarm(t *testing.T) (*bench, *[]string) {
	b := newBench(t, MachineConfig{})
	fired := &[]string{}
	b.mod.fire = func(tx *Tx, key []byte) error {
		*fired = append(*fired, fmt.Sprintf("%s@%d", key, int(tx.Now().Sub(time.Unix(1000, 0)).Seconds())))
		tx.Set(append([]byte("fired "), key...), []byte("1"))
		return nil
	}
	return b, fired
}

// at sets a timer some seconds after the start; 0 cancels it.
func (b *bench) at(key string, seconds int) Result {
	return b.run(func(tx *Tx) ([]byte, error) {
		at := time.Time{}
		if seconds != 0 {
			at = time.Unix(1000+int64(seconds), 0)
		}
		tx.SetTimer([]byte(key), at)
		return nil, nil
	})
}

// pass proposes timers some seconds after the start, and returns how many commands ran.
func (b *bench) pass(seconds int) int {
	return b.entry(TimersEntry(time.Unix(1000+int64(seconds), 0))).Commands
}

func wantFired(t *testing.T, fired *[]string, want string) {
	t.Helper()
	if got := strings.Join(*fired, " "); got != want {
		t.Errorf("fired %q, want %q", got, want)
	}
}

// TestTimer_FarOffTimes: a moment that nanoseconds in 64 bits cannot hold is not one in the past.
func TestTimer_FarOffTimes(t *testing.T) {
	b, fired := alarm(t)
	set := func(key string, at time.Time) {
		b.run(func(tx *Tx) ([]byte, error) { tx.SetTimer([]byte(key), at); return nil, nil })
	}
	last := time.Unix(0, 1<<63-1)
	for i, at := range []time.Time{last, last.Add(1), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2600, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(1<<40, 0)} {
		set(fmt.Sprint("far", i), at)
		if due, ok := b.m.NextTimer(); !ok || !due.Equal(last) {
			t.Errorf("%v: next timer is at %v, %v; want %v", at, due, ok, last)
		}
	}
	b.pass(1_000_000)
	wantFired(t, fired, "")
	// One too early for the row is due at once, and setting either again changes nothing.
	set("early", time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC))
	set("early", time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC))
	set("far0", time.Date(2900, 1, 1, 0, 0, 0, 0, time.UTC))
	b.pass(1_000_001)
	wantFired(t, fired, "early@1000001")
	for i := range 5 {
		set(fmt.Sprint("far", i), time.Time{})
	}
	if due, ok := b.m.NextTimer(); ok && b.m.findNextTimer() != 0 {
		t.Errorf("after all were cancelled one is left at %v", due)
	}
}

func TestTimer_FiresOnceWhenDue(t *testing.T) {
	b, fired := alarm(t)
	b.at("a", 5)
	b.at("b", 3)
	b.pass(2)
	wantFired(t, fired, "")
	b.pass(4)
	wantFired(t, fired, "b@4")
	b.pass(9)
	b.pass(10)
	wantFired(t, fired, "b@4 a@9")
	b.want("fired a", "1")
	if _, ok := b.m.NextTimer(); ok {
		t.Errorf("a timer is left")
	}
	if b.m.Revision() != 4 {
		t.Errorf("revision %d, want 4", b.m.Revision())
	}
}

func TestTimer_IsReplacedAndCancelled(t *testing.T) {
	b, fired := alarm(t)
	b.at("a", 5)
	b.at("a", 7)
	b.at("b", 5)
	b.at("b", 0)
	b.at("c", 8)
	b.at("c", 4)
	if r := b.at("nobody", 0); r.Err != nil || r.Revision != 6 {
		t.Errorf("cancelling nothing: %+v", r)
	}
	if r := b.at("a", 7); r.Revision != 6 {
		t.Errorf("setting a timer to what it is: %+v", r)
	}
	b.pass(6)
	wantFired(t, fired, "c@6")
	b.pass(20)
	wantFired(t, fired, "c@6 a@20")
}

// Deleted rows are in the store for a while: what comes next is not looked for where timers were.
func TestTimer_IsNotLookedForInThePast(t *testing.T) {
	b, _ := alarm(t)
	first := func(want int) {
		t.Helper()
		if got := int64(binary.BigEndian.Uint64(b.m.firstTimer()[1:])); got != time.Unix(1000+int64(want), 0).UnixNano() {
			t.Errorf("looked for from %v on, want second %d", time.Unix(0, got).UTC(), want)
		}
	}
	b.at("a", 3)
	b.at("b", 8)
	first(3)
	b.pass(4)
	first(8)
	b.at("c", 6)
	first(6)
	b.at("c", 0)
	b.at("b", 0)
	b.at("d", 9)
	b.pass(7)
	first(9)
	b.pass(9)
	if got := b.m.firstTimer(); binary.BigEndian.Uint64(got[1:]) != 0 {
		t.Errorf("none is left: looked for from %x on", got)
	}
	b.at("e", 5)
	first(5)
}

func TestTimer_BeforeTheEpochIsDueAtOnce(t *testing.T) {
	b, fired := alarm(t)
	b.run(func(tx *Tx) ([]byte, error) {
		tx.SetTimer([]byte("old"), time.Unix(-5, 0))
		return nil, nil
	})
	b.pass(0)
	wantFired(t, fired, "old@0")
}

func TestTimer_ErrorDropsTheTimerAndItsWrites(t *testing.T) {
	b, _ := alarm(t)
	b.mod.fire = func(tx *Tx, _ []byte) error {
		tx.Set([]byte("half"), []byte("1"))
		return errs.New(errs.Conflict, "no")
	}
	b.at("a", 1)
	rev := b.m.Revision()
	b.pass(2)
	b.want("half", "")
	if _, ok := b.m.NextTimer(); ok || b.m.Revision() != rev {
		t.Errorf("revision %d, timer left %v", b.m.Revision(), ok)
	}
}

func TestTimer_MaySetItselfAgain(t *testing.T) {
	b, fired := alarm(t)
	inner := b.mod.fire
	b.mod.fire = func(tx *Tx, key []byte) error {
		if len(*fired) < 3 {
			tx.SetTimer(key, tx.Now().Add(2*time.Second))
		}
		return inner(tx, key)
	}
	b.at("a", 1)
	for s := range 12 {
		b.pass(s)
	}
	wantFired(t, fired, "a@1 a@3 a@5 a@7")
}

func TestTimer_OneMayCancelAnotherThatIsDue(t *testing.T) {
	b, fired := alarm(t)
	inner := b.mod.fire
	b.mod.fire = func(tx *Tx, key []byte) error {
		tx.SetTimer([]byte("b"), time.Time{})
		return inner(tx, key)
	}
	b.at("a", 1)
	b.at("b", 2)
	b.pass(3)
	wantFired(t, fired, "a@3")
}

func TestTimer_ManyDueAreSpreadOverEntries(t *testing.T) {
	b, fired := alarm(t)
	b.run(func(tx *Tx) ([]byte, error) {
		for i := range 2*timersPerEntry + 10 {
			tx.SetTimer(fmt.Appendf(nil, "%04d", i), time.Unix(1001, int64(i)))
		}
		return nil, nil
	})
	for _, want := range []int{timersPerEntry, timersPerEntry, 10, 0} {
		if got := b.pass(5); got != want {
			t.Errorf("an entry fired %d timers, want %d", got, want)
		}
	}
	if len(*fired) != 2*timersPerEntry+10 || (*fired)[300] != "0300@5" {
		t.Errorf("%d fired, number 300 is %s", len(*fired), (*fired)[300])
	}
}

func TestTimer_OfAModuleThatIsGone(t *testing.T) {
	b, _ := alarm(t)
	b.at("a", 1)
	b.table = Modules()
	b.open()
	b.pass(2)
	if _, ok := b.m.NextTimer(); ok {
		t.Errorf("the timer stays for ever")
	}
}

func TestTimer_IsUndoneWithItsCommand(t *testing.T) {
	b, fired := alarm(t)
	b.at("a", 5)
	b.run(func(tx *Tx) ([]byte, error) {
		tx.SetTimer([]byte("a"), time.Unix(1001, 0))
		tx.SetTimer([]byte("b"), time.Unix(1001, 0))
		return nil, errs.New(errs.Conflict, "no")
	})
	b.pass(3)
	wantFired(t, fired, "")
	// The bound may be too early after a rollback, but not after an entry found that nothing was due.
	if due, ok := b.m.NextTimer(); !ok || !due.Equal(time.Unix(1005, 0)) {
		t.Errorf("next timer %v %v", due, ok)
	}
	b.pass(6)
	wantFired(t, fired, "a@6")
}
