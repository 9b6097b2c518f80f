//go:build mutants

package sim

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quorate/quorate/internal/env"
)

// profiles are mixes of faults in which mutants are looked for. Each starts from what the seed draws.
var profiles = map[string]func(*Options){
	// calm has no faults at all.
	"calm": func(*Options) {},
	// power crashes nodes, often all of them at once.
	"power": func(o *Options) { o.Crash, o.PowerCut, o.Flush, o.DiskStall = 0.15, 0.1, 0.2, 0.3 },
	// churn changes leaders by all means but damage.
	"churn": func(o *Options) { o.Crash, o.Partition, o.Pause, o.Loss, o.Double = 0.06, 0.3, 0.06, 0.05, 0.05 },
	// short keeps logs so short that followers need snapshots.
	"short": func(o *Options) {
		o.Crash, o.PowerCut, o.Partition, o.Loss, o.Double = 0.1, 0.05, 0.2, 0.03, 0.05
		o.CutEntries, o.ChunkBytes, o.FlushMax = 5, 200, 500*time.Millisecond
	},
	// stall makes syncs slow, so that elections come in between.
	"stall": func(o *Options) { o.Crash, o.DiskStall, o.Partition = 0.15, 0.15, 0.2 },
	// eio makes syncs fail.
	"eio": func(o *Options) { o.Crash, o.PowerCut, o.SyncError = 0.08, 0.03, 0.15 },
	// rot flips bits, and replaces disks.
	"rot": func(o *Options) { o.Crash, o.BitFlip, o.Wipe, o.Partition = 0.05, 0.08, 0.04, 0.1 },
	// votes damages the end of logs where votes are.
	"votes": func(o *Options) {
		o.Recant, o.Partition, o.ElectionTicks, o.ThinkMax = 0.15, 0.05, 5, 300*time.Millisecond
	},
	// local is rot with stale reads that the host is not asked for.
	"local": func(o *Options) { o.Crash, o.BitFlip, o.Wipe, o.LocalReads = 0.05, 0.08, 0.08, true },
	// alone is a cluster of one node.
	"alone": func(o *Options) { o.Nodes, o.Crash, o.Clients, o.ThinkMax = 1, 0.3, 8, 3*time.Millisecond },
	// lease serves reads under leases while leaders change.
	"lease": func(o *Options) {
		o.Squeeze, o.LeaseReads, o.NoHibernate = 0.2, true, true
		o.ElectionTicks, o.Clients, o.ThinkMax = 20, 8, 20*time.Millisecond
	},
	// move hands leadership over under leases.
	"move": func(o *Options) {
		o.Move, o.LeaseReads, o.NoHibernate = 0.3, true, true
		o.ElectionTicks, o.Clients, o.ThinkMax = 20, 8, 20*time.Millisecond
	},
	// orders has hand-overs asked for so often that they cross each other, and the elections that faults bring.
	"orders": func(o *Options) {
		o.Move, o.Crash, o.Pause, o.Partition, o.Loss, o.ElectionTicks = 3, 0.1, 0.1, 0.2, 0.05, 5
	},
}

// mutants says where each planted defect is looked for, and in how many seeds at most it must be found.
var mutants = []struct {
	m       env.Mutation
	name    string
	profile string
	seeds   int
}{
	{env.MutantAckBeforeSync, "AckBeforeSync", "power", 40},
	{env.MutantHardStateNotSaved, "HardStateNotSaved", "power", 40},
	{env.MutantStaleReadIndex, "StaleReadIndex", "churn", 40},
	{env.MutantDoubleApply, "DoubleApply", "churn", 40},
	{env.MutantTornTailKept, "TornTailKept", "power", 60},
	{env.MutantBitFlipBelieved, "BitFlipBelieved", "rot", 60},
	{env.MutantAppliedIndexAhead, "AppliedIndexAhead", "power", 60},
	{env.MutantLogCutEarly, "LogCutEarly", "short", 60},
	{env.MutantSnapshotNoSession, "SnapshotNoSession", "short", 60},
	{env.MutantSnapshotChunkSkipped, "SnapshotChunkSkipped", "short", 40},
	{env.MutantAckBeforeCommit, "AckBeforeCommit", "calm", 40},
	{env.MutantSuffixKept, "SuffixKept", "stall", 60},
	{env.MutantClockInApply, "ClockInApply", "calm", 40},
	{env.MutantUnknownIsFailed, "UnknownIsFailed", "churn", 40},
	{env.MutantSyncErrorIgnored, "SyncErrorIgnored", "eio", 60},
	{env.MutantRollbackForgotten, "RollbackForgotten", "calm", 40},
	{env.MutantAmnesia, "Amnesia", "rot", 60},
	{env.MutantLeaseForgotten, "LeaseForgotten", "lease", 40},
	{env.MutantLeaseKeptOnMove, "LeaseKeptOnMove", "move", 60},
	{env.MutantMoveMisjudged, "MoveMisjudged", "orders", 40},
	{env.MutantReadBeforeTerm, "ReadBeforeTerm", "alone", 60},
	{env.MutantWakeLost, "WakeLost", "calm", 40},
	{env.MutantRebuildingRead, "RebuildingRead", "local", 60},
	{env.MutantVoteSaidOnce, "VoteSaidOnce", "votes", 40},
	{env.MutantInstallNotSaved, "InstallNotSaved", "short", 60},
}

// elsewhere are the planted defects of what the simulation does not run, and who finds them.
var elsewhere = map[env.Mutation]string{env.MutantFenceUnchecked: "TestMutant_FenceUnchecked in internal/kv"}

func mutantOptions(profile string, seed uint64) Options {
	o := quietOptions(seed)
	profiles[profile](&o)
	return o
}

// TestMutants switches on one planted defect after the other and requires that the simulation sees it.
func TestMutants(t *testing.T) {
	defer env.SetMutant(env.MutantNone)
	byMutant := map[env.Mutation]bool{}
	var table strings.Builder
	fmt.Fprintf(&table, "%-22s %-7s %-6s %s\n", "mutant", "profile", "seeds", "found by")
	for _, c := range mutants {
		byMutant[c.m] = true
		t.Run(c.name, func(t *testing.T) {
			env.SetMutant(c.m)
			for seed := uint64(1); seed <= uint64(c.seeds); seed++ {
				if r := Run(mutantOptions(c.profile, seed)); r.Err != nil {
					msg, _, _ := strings.Cut(r.Err.Error(), "\n")
					fmt.Fprintf(&table, "%-22s %-7s %-6d %.140s\n", c.name, c.profile, seed, msg)
					return
				}
			}
			fmt.Fprintf(&table, "%-22s %-7s %-6s\n", c.name, c.profile, "none")
			t.Errorf("not found in %d seeds of profile %s", c.seeds, c.profile)
		})
	}
	for _, m := range env.Mutations() {
		if !byMutant[m] && elsewhere[m] == "" {
			t.Errorf("mutation %d is looked for nowhere", m)
		}
	}
	t.Logf("\n%s", table.String())
}

// TestProfiles_HoldWithoutMutants shows that what finds the mutants finds nothing else.
func TestProfiles_HoldWithoutMutants(t *testing.T) {
	env.SetMutant(env.MutantNone)
	for name := range profiles {
		for seed := uint64(1); seed <= 8; seed++ {
			if r := Run(mutantOptions(name, seed)); r.Err != nil {
				for _, l := range r.Log[max(0, len(r.Log)-40):] {
					t.Log(l)
				}
				t.Errorf("profile %s, seed %d: %v", name, seed, r.Err)
			}
		}
	}
}
