package replica

import (
	"testing"
	"time"

	"github.com/quorate/quorate/internal/shard"
)

// asleep says whether no node's shard is awake.
func (r *rig) asleep() bool {
	for _, n := range r.nodes {
		if n.host != nil && n.host.Shards()[0].Awake {
			return false
		}
	}
	return true
}

func TestHibernation_IdleShardSendsNothing(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	sent := 0
	r.drop = func(_, _ shard.NodeID, kind byte) bool {
		if kind != 0 {
			sent++
		}
		return false
	}
	term := lead.host.Shards()[0].Term
	r.run(time.Minute)
	if sent != 0 || !r.asleep() {
		t.Errorf("%d messages while asleep", sent)
	}
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	if got := lead.host.Shards()[0].Term; got != term || lead.counts.Asleep == 0 || other.counts.Woken < 2 {
		t.Errorf("term went from %d to %d; %+v", term, got, lead.counts)
	}
	r.until("sleep", r.asleep)
	f := other.read(0)
	if took := r.until("read", func() bool { return other.reads[f] != nil }); took > 200*time.Millisecond {
		t.Errorf("a read of a sleeping shard took %v", took)
	}
}

func TestHibernation_EndsWhenTheLeadersNodeFallsSilent(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	lead.stop()
	took := r.until("leader", func() bool { return r.leader() != nil })
	if took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestHibernation_EndsWhenTheLeadersNodeRestarts(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	lead.restart()
	r.until("leader", func() bool { return r.leader() != nil })
	if res := other.do("k=2"); res.Err != nil {
		t.Errorf("got %+v", res)
	}
	r.same("k", "2")
}

// A follower that restarts may have lost the last commit. It is told before it would call an election.
func TestHibernation_EndsWhenAFollowersNodeRestarts(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	lead.do("k=1")
	r.until("sleep", r.asleep)
	term := lead.host.Shards()[0].Term
	other.restart()
	took := r.until("leader is known", func() bool { return other.host.Shards()[0].Leader == lead.id })
	if took > 500*time.Millisecond {
		t.Errorf("took %v", took)
	}
	r.same("k", "1")
	r.until("sleep", r.asleep)
	if got := lead.host.Shards()[0].Term; got != term {
		t.Errorf("term went from %d to %d", term, got)
	}
}

func TestHibernation_TimersWakeTheShard(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, _ := r.elect()
	lead.do("@t=30s")
	r.until("sleep", r.asleep)
	r.run(31 * time.Second)
	r.same("t", "fired")
}

func TestHibernation_NotWhileAFollowerLags(t *testing.T) {
	r := newRig(t, 3, nil)
	lead, other := r.elect()
	r.isolate(other)
	lead.do("k=1")
	r.run(10 * time.Second)
	if !lead.host.Shards()[0].Awake {
		t.Errorf("the shard sleeps although a follower lags")
	}
	r.heal()
	r.until("sleep", r.asleep)
	r.same("k", "1")
}

func TestHibernation_CanBeSwitchedOff(t *testing.T) {
	r := newRig(t, 3, func(c *Config) { c.NoHibernate = true })
	r.elect()
	r.run(10 * time.Second)
	if r.asleep() {
		t.Errorf("the shard sleeps")
	}
}
