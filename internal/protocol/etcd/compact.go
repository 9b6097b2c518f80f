package etcd

import (
	"errors"
	"time"

	"github.com/quorate/quorate/internal/kv"
	"github.com/quorate/quorate/internal/shard"
)

// Compaction says which history a server lets go of by itself. At most one of the fields is set; the zero value keeps all history.
type Compaction struct {
	// Period is how long a revision that is not the newest can still be read: at least that, and about a tenth more.
	Period time.Duration
	// Revisions is how many revisions before the newest can still be read, at least: every five minutes those before them go.
	Revisions int64
}

// Timings, as in etcd: history of a long period goes in steps of six minutes.
const (
	compactStepMax   = 6 * time.Minute
	compactSteps     = 10
	compactRevisions = 5 * time.Minute
)

// on says whether there is anything to do.
func (c Compaction) on() bool { return c.Period > 0 || c.Revisions > 0 }

// step is how often to look.
func (c Compaction) step() time.Duration {
	if c.Revisions > 0 {
		return compactRevisions
	}
	return min(c.Period/compactSteps, compactStepMax)
}

// passed are the newest revisions that were seen, one a step, oldest first.
type passed struct {
	c    Compaction
	revs []int64
}

// due returns the revision before which history may go, 0 if there is none, when rev is the newest.
func (p *passed) due(rev int64) int64 {
	if p.c.Revisions > 0 {
		return max(rev-p.c.Revisions, 0)
	}
	// The first of n+1 was seen n steps ago.
	steps := int((p.c.Period + p.c.step() - 1) / p.c.step())
	p.revs = append(p.revs, rev)
	if len(p.revs) <= steps {
		return 0
	}
	p.revs = p.revs[len(p.revs)-steps-1:]
	return p.revs[0]
}

// compact lets history go while this node leads. All nodes look, so that one which begins to lead need not wait for a period.
func (s *Server) compact(c Compaction) {
	tick := time.NewTicker(c.step())
	defer tick.Stop()
	p := passed{c: c}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now, err := s.status(s.ctx, true)
		if err != nil {
			continue
		}
		rev := p.due(now.Revision)
		at, t, err := s.where()
		if err != nil || at.Leader != t.Self || rev <= max(now.Compacted, 1) {
			continue
		}
		err = s.client.Submit(s.ctx, routeOf(at), shard.Command{Module: shard.ModuleKV, Data: kv.EncodeCompact(rev)}).Wait(s.ctx).Err
		switch {
		case err == nil:
			s.log.Info("compacted the history", "revision", rev, "newest", now.Revision)
		case s.ctx.Err() == nil && !errors.Is(err, kv.ErrCompacted):
			s.log.Warn("the history could not be compacted; it is tried again", "revision", rev, "error", err)
		}
	}
}
