package drill

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// The linearizability checker. Only this file imports porcupine; its rules (few hundred operations per key, few open ones,
// always a time limit) follow from the measured growth of its running time.

// registerModel is a register or counter: the state is the value as a string, "" before the first write.
func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			was, op := state.(string), input.(operation)
			switch op.kind {
			case opRead:
				return op.out == was, was
			case opWrite:
				return true, op.arg
			case opSwap:
				return op.open || op.out == was, op.arg
			case opIncr:
				n := 0
				if was != "" {
					var err error
					if n, err = strconv.Atoi(was); err != nil {
						return false, was
					}
				}
				next := strconv.Itoa(n + 1)
				return op.open || op.out == next, next
			}
			return false, was
		},
		DescribeOperation: func(input, _ any) string { return input.(operation).String() },
	}
}

// String prints an operation in the words of the Redis protocol.
func (o operation) String() string {
	s := o.kind.String()
	if o.arg != "" {
		s += " " + o.arg
	}
	switch {
	case o.open:
		s += " → ?"
	case o.kind == opWrite:
	case o.out == "":
		s += " → nil"
	default:
		s += " → " + o.out
	}
	return s
}

// linearity is what checkHistories found.
type linearity struct {
	findings []string
	// undecided are the keys whose histories could not be judged in time.
	undecided []string
	// bad is the first history that no order explains.
	bad *keyHistory
}

// checkHistories judges histories, each within a time limit and all of them within a total. It is a pure function of them.
func checkHistories(hs []*keyHistory, each, total time.Duration) linearity {
	var out linearity
	end := time.Now().Add(total)
	for _, h := range hs {
		limit := min(each, time.Until(end))
		if limit <= 0 {
			out.undecided = append(out.undecided, h.key)
			continue
		}
		switch porcupine.CheckOperationsTimeout(registerModel(), h.operations(), limit) {
		case porcupine.Illegal:
			if out.bad == nil {
				out.bad = h
			}
			out.findings = append(out.findings, "key "+h.key+": "+h.explain())
		case porcupine.Unknown:
			out.undecided = append(out.undecided, h.key)
		}
	}
	return out
}

// operations converts the history. An open write or swap whose value no answer shows is left out: it can be put at the very
// end if the rest has an order, and if the whole has one then so has the rest, since no answer depends on it.
func (h *keyHistory) operations() []porcupine.Operation {
	seen := map[string]bool{}
	for _, o := range h.ops {
		if !o.open && (o.kind == opRead || o.kind == opSwap) {
			seen[o.out] = true
		}
	}
	var ops []porcupine.Operation
	for _, o := range h.ops {
		if o.open && o.kind != opIncr && !seen[o.arg] {
			continue
		}
		ret := o.ret
		if o.open {
			ret = math.MaxInt64
		}
		ops = append(ops, porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Output: o.out, Return: ret})
	}
	return ops
}

// explain names a simple reason why no order fits, if there is one.
func (h *keyHistory) explain() string {
	writes := map[string]operation{}
	for _, o := range h.ops {
		if o.kind == opWrite || o.kind == opSwap {
			writes[o.arg] = o
		}
	}
	if s := h.explainCounter(); s != "" {
		return s
	}
	for _, o := range h.ops {
		if o.open || o.kind == opWrite || o.kind == opIncr || h.counter {
			continue
		}
		from, written := writes[o.out]
		if !written && o.out != "" {
			return fmt.Sprintf("%s answered a value that nobody wrote, or whose write was refused", at(o))
		}
		for _, w := range writes {
			if w.open || w.ret >= o.call || w.arg == o.out || w.arg == o.arg {
				continue
			}
			if !written || !from.open && from.ret < w.call {
				return fmt.Sprintf("stale: %s, although %s had been acknowledged before it began", at(o), at(w))
			}
		}
	}
	return fmt.Sprintf("no order of its %d operations explains all answers", len(h.ops))
}

// explainCounter looks for what goes wrong with counters.
func (h *keyHistory) explainCounter() string {
	if !h.counter {
		return ""
	}
	last := map[string]operation{}
	begun := 0
	for _, o := range h.ops {
		if o.kind != opIncr {
			continue
		}
		begun++
		if prev, ok := last[o.out]; ok && !o.open {
			return fmt.Sprintf("an increment is lost: %s, and also %s", at(prev), at(o))
		}
		if !o.open {
			last[o.out] = o
		}
	}
	number := func(o operation) int {
		n, _ := strconv.Atoi(o.out) // "" counts as 0
		return n
	}
	for _, o := range h.ops {
		if !o.open && number(o) > begun {
			return fmt.Sprintf("an increment was applied twice: %s after at most %d increments", at(o), begun)
		}
	}
	ops := slices.Clone(h.ops)
	slices.SortFunc(ops, func(a, b operation) int { return int(a.ret - b.ret) })
	for _, o := range ops {
		for _, p := range ops {
			if p.ret >= o.call {
				break
			}
			if !p.open && !o.open && number(p) > number(o) {
				return fmt.Sprintf("stale: %s, although %s had been answered before it began", at(o), at(p))
			}
		}
	}
	return ""
}

// at prints an operation with where and when it was asked and answered.
func at(o operation) string {
	return fmt.Sprintf("%s through node %d (%d to %d ms)", o, o.node+1, o.call/1e6, o.ret/1e6)
}

// draw writes porcupine's picture of a history.
func (h *keyHistory) draw(path string) error {
	_, info := porcupine.CheckOperationsVerbose(registerModel(), h.operations(), 10*time.Second)
	return porcupine.VisualizePath(registerModel(), info, path)
}
