package redis

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/quorate/quorate/internal/shardtest"
)

// What COMMAND INFO says of a command is what libraries for clusters go by.
func TestDifferential_CommandInfo(t *testing.T) {
	redis := startRedis(t)
	r := newRig(t, shardtest.Options{RealTime: true}, Config{})
	ours, theirs := r.dial(), dial(t, redis)
	set := regexp.MustCompile(`\[(\+@[^\]]*)\]`)
	// Redis says in words as well what some flags mean.
	notes := regexp.MustCompile(`"notes" ".*?" `)
	inOrder := func(reply string) string {
		reply = notes.ReplaceAllString(reply, "")
		return set.ReplaceAllStringFunc(reply, func(s string) string {
			f := strings.Fields(s[1 : len(s)-1])
			slices.Sort(f)
			return fmt.Sprint(f)
		})
	}
	for _, cmd := range r.s.list {
		switch cmd.Name {
		case "event.add", "fence", "client", "cluster", "command", "config":
			// Those of Quorate, and those with subcommands, which are not told of.
			continue
		}
		got, want := ours.do("command", "info", cmd.Name), theirs.do("command", "info", cmd.Name)
		if inOrder(got) != inOrder(want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
