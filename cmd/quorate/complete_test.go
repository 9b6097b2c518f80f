package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completed asks for completions as the scripts of shells do: the words so far, and the beginning of the next one.
func completed(t *testing.T, line ...string) (offered []string, directive string) {
	t.Helper()
	code, out, talk := call(t, append([]string{cobra.ShellCompNoDescRequestCmd}, line...)...)
	if code != exitOK {
		t.Fatalf("completing %q: exit code %d, %s", line, code, talk)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	last := len(lines) - 1
	return lines[:last], lines[last]
}

func TestCompletion_OffersWhatIsTaken(t *testing.T) {
	const words, inOrder, folders, files = ":4", ":36", ":16", ":0"
	for _, c := range []struct {
		line      []string
		want      []string // some of what is offered
		directive string
	}{
		{[]string{"drill", "run", ""}, []string{"outbox", "power-loss", "kill-cycles"}, words},
		{[]string{"drill", "run", "lea"}, []string{"leader-kill", "lease-stall"}, words},
		{[]string{"drill", "run", "outbox", ""}, nil, words},
		{[]string{"drill", "run", "--all", ""}, nil, words},
		{[]string{"drill", "run", "power-loss", "--control", ""}, []string{"no-fsync"}, words},
		{[]string{"drill", "run", "bit-flip", "--control", ""}, []string{"no-verify"}, words},
		{[]string{"drill", "run", "--control", ""}, []string{"no-fsync", "no-verify"}, words},
		{[]string{"drill", "run", "--nodes", ""}, []string{"3", "5"}, inOrder},
		{[]string{"drill", "run", "--for", ""}, nil, words},
		{[]string{"demo", "--nodes", ""}, []string{"1", "3", "5"}, inOrder},
		{[]string{"bench", "--op", ""}, []string{"get", "set"}, words},
		{[]string{"bench", "--redis", ""}, nil, words},
		{[]string{"dev", "--log-format", ""}, []string{"console", "json"}, words},
		{[]string{"server", "--log-level", "i"}, []string{"info"}, words},
		{[]string{"server", "--config", ""}, nil, files},
		{[]string{"dev", "--data", ""}, nil, folders},
		{[]string{"dev", ""}, nil, words},
		{[]string{"etcd", "--auto-compaction-mode", ""}, []string{"periodic", "revision"}, words},
		{[]string{"etcd", "--peer-trusted-ca-file", ""}, nil, files},
		{[]string{"import", "etcd-snapshot", ""}, nil, files},
		{[]string{"import", "etcd-snapshot", "f", "--space", ""}, nil, words},
		{[]string{"help", "dri"}, []string{"drill"}, words},
	} {
		offered, directive := completed(t, c.line...)
		for _, w := range c.want {
			if !slices.Contains(offered, w) {
				t.Errorf("quorate %s: %q is not offered, but %q", strings.Join(c.line, " "), w, offered)
			}
		}
		if c.want == nil && len(offered) > 0 || directive != c.directive {
			t.Errorf("quorate %s: offers %q and %s, want %q and %s", strings.Join(c.line, " "), offered, directive, c.want, c.directive)
		}
	}
	if offered, _ := completed(t, "drill", "run", "power-loss", "--control", ""); slices.Contains(offered, "no-verify") {
		t.Errorf("the controls of power-loss are %q", offered)
	}
}

// TestCompletion_OfEachFlag: who offers nothing for a flag leaves it to the shell, which offers the files that happen to be there.
func TestCompletion_OfEachFlag(t *testing.T) {
	root := newRoot()
	root.InitDefaultCompletionCmd()
	offer(root)
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		for _, below := range c.Commands() {
			look(below)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, ok := c.GetFlagCompletionFunc(f.Name); !ok && f.NoOptDefVal == "" {
				t.Errorf("%s --%s: the shell is told nothing", c.CommandPath(), f.Name)
			}
		})
		if c.ValidArgsFunction == nil && !takesFile(c) && c.Runnable() {
			t.Errorf("%s: the shell is told nothing of its arguments", c.CommandPath())
		}
	}
	look(root)
}
