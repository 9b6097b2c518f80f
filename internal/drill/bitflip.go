package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/quorate/quorate/internal/errs"
)

func bitFlipDrill() Drill {
	return Drill{
		Name:    "bit-flip",
		Text:    "One node after the other is killed, its raft log or state store is damaged, and it starts again; it must be rebuilt, and never answer wrongly.",
		Promise: "A minority of broken disks, whatever the damage, neither loses acknowledged data nor answers wrongly (promise 6).",
		NotShown: "Damage on two of three nodes before the first is whole again, damage while a node runs, and disks that return other errors. " +
			"A damaged part that nothing reads stays unnoticed until something does. " +
			"The files that say whose the directory is (OWNER, MEMBERS): a node with a damaged one does not start, and says what to do.",
		Controls: []Control{{"no-verify", "the nodes skip the checksums of the raft log; bits are flipped in the values of entries that are replayed"}},
		Length:   25 * time.Second, Short: 8 * time.Second, ControlLength: 8 * time.Second,
		disk: true, cycles: true,
		run: runBitFlip,
	}
}

func runBitFlip(ctx context.Context, r *run) error {
	var sandbox []string
	if r.Control == "no-verify" {
		sandbox = append(sandbox, "no_verify: true")
	}
	cl, err := r.cluster(ctx, true, sandbox...)
	if err != nil {
		return err
	}
	defer cl.Close()
	l := &ledger{addrs: cl.redis(), workers: 6, seed: r.Seed, valueBytes: 400, pace: 2 * time.Millisecond}
	if r.Control == "" {
		// The state store writes its first tables when it holds more than 32 MiB. The control needs the opposite: entries
		// that are still to be replayed.
		l.bulk, l.bulkBytes = 2400, 16<<10
	}
	lctx, stop := context.WithCancel(ctx)
	defer l.wg.Wait()
	defer r.endControl(cl)
	defer stop()
	l.run(lctx)
	var cycles, rebuilt, restarts atomic.Int64
	r.says(func() string {
		return fmt.Sprintf("%d nodes damaged, %d rebuilt; %d writes acknowledged, %d unknown, %d refused",
			cycles.Load(), rebuilt.Load(), l.acked.Load(), l.unknown.Load(), l.refused.Load())
	})
	defer func() {
		r.count("nodes damaged", cycles.Load())
		r.count("nodes that rebuilt a replica", rebuilt.Load())
		r.count("nodes that ended because of the damage and were started again", restarts.Load())
		r.count("writes acknowledged", l.acked.Load())
		r.count("writes unknown", l.unknown.Load())
		r.count("writes refused", l.refused.Load())
	}()
	for l.next.Load() <= int64(l.bulk) {
		if !pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
	if l.bulk > 0 {
		r.event("%d MiB are written", l.bulk*l.bulkBytes>>20)
	}
	b := &flipper{r: r, cl: cl, l: l, rng: r.rng(1), rebuilt: &rebuilt, restarts: &restarts}
	for end := time.Now().Add(r.For); cycles.Load() == 0 || time.Now().Before(end) && (r.Cycles == 0 || int(cycles.Load()) < r.Cycles); {
		if l.full() {
			r.endsEarly()
			break
		}
		if !pause(ctx, time.Duration(300+b.rng.IntN(700))*time.Millisecond) {
			return ctx.Err()
		}
		if err := b.cycle(ctx, int(cycles.Add(1))); err != nil {
			return err
		}
		if r.found() {
			return nil
		}
	}
	stop()
	l.wg.Wait()
	if r.Control != "" {
		return nil
	}
	for i := range cl.Nodes {
		if err := r.verifyLedger(ctx, cl, l, i); err != nil {
			return err
		}
	}
	r.happened(l.acked.Load(), "no write was acknowledged")
	checkUp(r, cl)
	return nil
}

// flipper damages nodes.
type flipper struct {
	r   *run
	cl  *Cluster
	l   *ledger
	rng *rand.Rand
	// order is what is left of the present round of damages.
	order             []damage
	rebuilt, restarts *atomic.Int64
	// ended counts how often nodes ended by themselves in this cycle. It belongs to the goroutine that keeps them up.
	ended int
}

// cycle kills a node, damages its disk, starts it, and waits until the cluster is whole and right. The load goes on but for
// the comparison at the end.
func (b *flipper) cycle(ctx context.Context, n int) error {
	victim := b.cl.Nodes[b.rng.IntN(len(b.cl.Nodes))]
	what := "a random node"
	if n%3 == 0 {
		if p := b.cl.Leader(ctx, 1); p != nil {
			victim, what = p, "the leader"
		}
	}
	how := b.next()
	b.ended = 0
	before := replicaOf(ctx, victim)
	victim.Kill()
	did, err := inflict(b.rng, filepath.Join(victim.Dir, "data"), how, b.l.latest(latestKept))
	if errs.Is(err, errs.NotFound) {
		// Nothing to damage in this way yet, so in another way.
		did, err = inflict(b.rng, filepath.Join(victim.Dir, "data"), damageLogBits, nil)
	}
	if err != nil {
		return errs.Wrap(errs.Internal, err, "damage node %d", victim.ID)
	}
	b.r.event("node %d, %s, is killed: %s", victim.ID, what, did)
	began := time.Now()
	if err := victim.Start(); err != nil {
		return err
	}
	if err := b.waitBack(ctx, victim); err != nil {
		return err
	}
	return b.compare(ctx, victim, before, began)
}

// next deals the damages in random order, each as often as any other.
func (b *flipper) next() damage {
	if b.r.Control == "no-verify" {
		return damageValues
	}
	if len(b.order) == 0 {
		b.order = damages()
		b.rng.Shuffle(len(b.order), func(i, j int) { b.order[i], b.order[j] = b.order[j], b.order[i] })
	}
	d := b.order[0]
	b.order = b.order[1:]
	return d
}

// compare lets the load rest and compares replicas and values.
func (b *flipper) compare(ctx context.Context, victim *Process, before uint64, began time.Time) error {
	resume := b.l.rest()
	defer resume()
	if err := b.cl.WaitWhole(ctx, settleLimit); errs.Is(err, errs.Corrupt) {
		b.r.find(err.Error()) // and now see what that means to who reads
	} else if err != nil {
		return err
	}
	vctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	other := b.cl.Nodes[(victim.ID+b.rng.IntN(len(b.cl.Nodes)-1))%len(b.cl.Nodes)]
	for _, p := range []*Process{victim, other} {
		res, err := b.verify(vctx, p)
		if err != nil {
			return err
		}
		b.r.find(res.findings(fmt.Sprintf("read through node %d", p.ID))...)
	}
	if b.r.found() {
		return nil
	}
	// Reading may have led to a rebuild, and the next node must not be damaged before this one is whole.
	if err := b.cl.WaitWhole(ctx, settleLimit); err != nil {
		return err
	}
	if wasRebuilt(before, replicaOf(ctx, victim)) {
		b.rebuilt.Add(1)
		b.r.event("node %d was rebuilt; whole and compared after %d ms", victim.ID, time.Since(began).Milliseconds())
	} else {
		b.r.event("node %d needed no rebuild; compared after %d ms", victim.ID, time.Since(began).Milliseconds())
	}
	return nil
}

// verify reads everything through a node. Reading may be what makes the node notice its damage.
func (b *flipper) verify(ctx context.Context, p *Process) (ledgerResult, error) {
	wctx, cancel := context.WithCancel(ctx)
	watch := make(chan error, 1)
	go func() { watch <- b.keepUp(wctx, p) }()
	res, err := b.l.verify(ctx, p.Addr.Redis)
	cancel()
	if werr := <-watch; err != nil && werr != nil {
		err = werr
	}
	return res, err
}

// waitBack waits until a node answers again, and starts it again if it ends.
func (b *flipper) waitBack(ctx context.Context, p *Process) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	for {
		err := p.WaitReady(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := b.again(p); err != nil {
			return err
		}
	}
}

// keepUp starts a node again whenever it ends, until ctx does.
func (b *flipper) keepUp(ctx context.Context, p *Process) error {
	for pause(ctx, 20*time.Millisecond) {
		if p.Up() {
			continue
		}
		if err := b.again(p); err != nil {
			return err
		}
	}
	return nil
}

// restartsMax bounds how often a node may end because of its damage before it is given up. Each time is said.
const restartsMax = 8

// again starts a node that ended by itself, as a supervisor would.
func (b *flipper) again(p *Process) error {
	if p.Up() {
		return nil
	}
	b.restarts.Add(1)
	if b.ended++; b.ended > restartsMax {
		return errs.New(errs.Unavailable, "node %d does not come back: it ended %d times, with: %s", p.ID, b.ended, lastWords(p))
	}
	b.r.event("node %d ended and is started again: %s", p.ID, lastWords(p))
	p.Kill() // only takes note of the end
	return p.Start()
}

// lastWords returns why a node ended.
func lastWords(p *Process) string {
	lines, err := errorLines(logPath(p))
	if err != nil || len(lines) == 0 {
		return p.LogTail(1)
	}
	return lines[len(lines)-1]
}

// wasRebuilt compares ids of replicas. Of what is not known it says no: a node that could not be asked counts for nothing.
func wasRebuilt(before, after uint64) bool { return before != 0 && after != 0 && before != after }

// replicaOf returns the id of the node's replica of the first shard, which changes when it is rebuilt; 0 if not known.
func replicaOf(ctx context.Context, p *Process) uint64 {
	st, err := p.Status(ctx)
	if err != nil || len(st.Shards) == 0 {
		return 0
	}
	return st.Shards[0].Replica
}
