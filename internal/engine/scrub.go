package engine

import (
	"sync/atomic"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

// ScrubConfig says how a node checks stored data that nobody reads, so that damage shows while other copies are whole. The
// zero value means the defaults.
type ScrubConfig struct {
	// BytesPerSecond bounds how fast it reads; default 8 MiB.
	BytesPerSecond int64
	// First is how long after the start the first check begins, default 1 h; Every how long after the end of one the next
	// does, default 24 h. Both are stretched or shortened by chance, by up to an eighth, so that nodes that start together do
	// not check together.
	First, Every time.Duration
}

func (c *ScrubConfig) fill() {
	if c.BytesPerSecond == 0 {
		c.BytesPerSecond = 8 << 20
	}
	if c.First == 0 {
		c.First = time.Hour
	}
	if c.Every == 0 {
		c.Every = 24 * time.Hour
	}
}

// scrubStep is how much is read between two waits.
const scrubStep = 256 << 10

// scrubStats is what metrics show.
type scrubStats struct {
	bytes atomic.Int64
	// completed is when the last check ended without finding anything, in Unix seconds; 0 before the first.
	completed atomic.Int64
}

// scrub checks state store and raft log now and then.
func (g *Engine) scrub() {
	defer g.wg.Done()
	for d := g.cfg.Scrub.First; ; d = g.cfg.Scrub.Every {
		d += time.Duration(g.env.Rand()%uint64(d/4+1)) - d/8
		if g.pause(d) != nil {
			return
		}
		began, before := g.env.Now(), g.scrubbed.bytes.Load()
		err := g.scrubOnce()
		switch {
		case g.ctx.Err() != nil:
			return
		case err == nil:
			g.scrubbed.completed.Store(g.env.Now().Unix())
			g.log.Info("checked the stored data; no damage found", "bytes", g.scrubbed.bytes.Load()-before, "took", g.env.Now().Sub(began))
		case !errs.Is(err, errs.Corrupt):
			g.log.Warn("could not check the stored data; it is tried again later", "error", err)
		case len(g.cfg.Peers) == 0:
			// To stop would help nobody: whoever reads what is damaged gets the error, and the rest is good.
			g.log.Error("stored data are damaged, and this node has no peers to repair them from; restore a backup", "error", err)
		default:
			g.fail(err)
			return
		}
	}
}

func (g *Engine) scrubOnce() error {
	var owed int64
	pace := func(n int) error {
		g.scrubbed.bytes.Add(int64(n))
		if owed += int64(n); owed < scrubStep {
			return g.ctx.Err()
		}
		d := time.Duration(float64(owed) / float64(g.cfg.Scrub.BytesPerSecond) * float64(time.Second))
		owed = 0
		return g.pause(d)
	}
	if err := g.dir.Store.VerifyTables(pace); err != nil {
		return err
	}
	return g.dir.Log.Verify(pace)
}

// pause waits, unless the engine is stopped meanwhile.
func (g *Engine) pause(d time.Duration) error {
	select {
	case <-g.env.After(d):
		return nil
	case <-g.ctx.Done():
		return g.ctx.Err()
	}
}
