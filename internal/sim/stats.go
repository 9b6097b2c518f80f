package sim

import (
	"fmt"
	"reflect"
	"strings"
)

// Stats counts what a run did. Each figure is also a fact that must occur somewhere in a longer run of seeds: a fault that
// never happens, or an odd path that is never taken, proves nothing.
type Stats struct {
	// Work.
	Steps, Frames, Acked, Failed, Unknown, Overloaded, Reads, TokenReads, Timers int
	// Faults.
	Crashes, Kills, PowerCuts, Pauses, Partitions, Squeezes, Stalls, SyncErrors, Flips, Wipes, Forgets, Recants, Refusals, Flushes, Moves, Slows int
	// Elections are changes of leader, Moved those that somebody asked for and was told of.
	Elections, Moved int
	// SnapshotsSent and SnapshotsInstalled are whole states that moved; SnapshotsCut are those whose node died meanwhile.
	SnapshotsSent, SnapshotsInstalled, SnapshotsCut int
	// Replacements are replicas that lost their data and got a new id; Promotions those that were made voters again.
	Replacements, Promotions int
	// Forgotten are logs whose end was missed by the leader, VotesKept those that were cut and whose votes were kept.
	Forgotten, VotesKept int
	// Rebuilding are reads that a replica refused because it lost its data and was not restored yet.
	Rebuilding int
	// Duplicates are batches that came twice and were applied once.
	Duplicates int
	// Asleep and Woken are shards that hibernated and came back.
	Asleep, Woken int
	// LeaseReads were served by a leader without asking.
	LeaseReads int
	// TornTails are logs that ended in an unfinished write; LogsDamaged and StoresDamaged are disks found to be damaged.
	TornTails, LogsDamaged, StoresDamaged int
	// Signals are wake-ups of followers of the change log; Compactions are positions that were gone when they came.
	Signals, Compactions int
}

// Add adds another run's figures.
func (s *Stats) Add(o Stats) {
	a, b := reflect.ValueOf(s).Elem(), reflect.ValueOf(o)
	for i := range a.NumField() {
		a.Field(i).SetInt(a.Field(i).Int() + b.Field(i).Int())
	}
}

// Missing names the figures that are zero.
func (s Stats) Missing() []string {
	var out []string
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
			out = append(out, v.Type().Field(i).Name)
		}
	}
	return out
}

// String prints all figures.
func (s Stats) String() string {
	var b strings.Builder
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		fmt.Fprintf(&b, "%s %d  ", v.Type().Field(i).Name, v.Field(i).Int())
	}
	return strings.TrimSpace(b.String())
}
