package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/replica"
	"github.com/quorate/quorate/internal/shard"
)

const (
	// probesMax bounds the reads of one Probe that are under way together, so that other requests find room between them.
	probesMax = 256
	// probesNamed is how many shards an error names.
	probesNamed = 5
)

// Probe asks every shard that this node routes to whether a linearizable read could run now, which takes a leader and a
// quorum; it reads nothing. The error names the shards that do not answer before ctx ends.
func (g *Engine) Probe(ctx context.Context) error {
	topo := g.Topology()
	var silent []shard.ID
	for _, s := range topo.Shards {
		if s.Leader == 0 {
			silent = append(silent, s.ID)
		}
	}
	if len(silent) > 0 {
		return errs.New(errs.Unavailable, "%s of %d without a leader", named(silent), len(topo.Shards))
	}
	type probe struct {
		id shard.ID
		f  *shard.Future
	}
	var why error
	asked := 0
	for asked < len(topo.Shards) && ctx.Err() == nil {
		if g.ctx.Err() != nil {
			return g.stopped()
		}
		var all []probe
		for _, s := range topo.Shards[asked:min(asked+probesMax, len(topo.Shards))] {
			p := probe{s.ID, shard.NewFuture()}
			all = append(all, p)
			g.give(replica.Read{Shard: p.id, Future: p.f, Deadline: g.deadline(ctx)})
		}
		asked += len(all)
		for _, p := range all {
			// An answer that is there counts, also when the time is up.
			if res := p.f.Wait(ctx); res.Err != nil {
				silent = append(silent, p.id)
				if why == nil && ctx.Err() == nil {
					why = res.Err
				}
			}
		}
	}
	rest := ""
	if n := len(topo.Shards) - asked; n > 0 {
		rest = fmt.Sprintf(", and there was no time to ask %d others", n)
	}
	switch {
	case len(silent) > 0 && why != nil:
		return errs.Wrap(errs.Unavailable, why, "%s of %d not answering%s", named(silent), len(topo.Shards), rest)
	case len(silent) > 0:
		return errs.New(errs.Unavailable, "%s of %d not answering within the time limit%s", named(silent), len(topo.Shards), rest)
	case rest != "":
		return errs.New(errs.Unavailable, "%d of %d shards answered%s", asked, len(topo.Shards), rest)
	}
	return nil
}

// named lists shards, the first few by their numbers.
func named(ids []shard.ID) string {
	var s []string
	for _, id := range ids[:min(len(ids), probesNamed)] {
		s = append(s, fmt.Sprint(id))
	}
	out := strings.Join(s, ", ")
	if n := len(ids) - probesNamed; n > 0 {
		out += fmt.Sprintf(" and %d more", n)
	}
	if len(ids) == 1 {
		return "shard " + out
	}
	return "shards " + out
}
