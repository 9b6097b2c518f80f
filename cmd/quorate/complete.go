package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quorate/quorate/internal/bench"
	"github.com/quorate/quorate/internal/drill"
)

// words are what a flag of a name may be, in every command that has it.
var words = map[string][]cobra.Completion{
	"log-level":             {"debug", "info", "warn", "error"},
	"log-format":            {"console", "json"},
	"op":                    bench.Ops(),
	"auto-compaction-mode":  {"periodic", "revision"},
	"initial-cluster-state": {"new", "existing"},
	"tls-min-version":       {"TLS1.2", "TLS1.3"},
	"tls-max-version":       {"TLS1.2", "TLS1.3"},
	"auth-token":            {tokenSimple, "jwt,"},
}

// folders are flags that name a directory, and files those that name a file, beside all that end as fileFlag says; anything else that a flag
// takes is nothing that could be found in the present directory.
var (
	folders = []string{"data", "data-dir"}
	files   = []string{"config", configFlag, "ready-file"}
)

// fileFlag is how the names of etcd's flags end that name a file.
const fileFlag = "-file"

// offer tells shells what c, and the commands below it, take. What a command says itself comes first.
func offer(c *cobra.Command) {
	for _, below := range c.Commands() {
		offer(below)
	}
	if c.ValidArgsFunction == nil && !takesFile(c) {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, said := c.GetFlagCompletionFunc(f.Name); said || f.NoOptDefVal != "" {
			return
		}
		to := cobra.NoFileCompletions
		switch list, known := words[f.Name]; {
		case known:
			to = cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
		case slices.Contains(folders, f.Name):
			to = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
		case slices.Contains(files, f.Name) || strings.HasSuffix(f.Name, fileFlag):
			to = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
		}
		// It fails for flags that are not there, and those that have one.
		_ = c.RegisterFlagCompletionFunc(f.Name, to)
	})
}

// takesFile says whether the arguments of a command are files.
func takesFile(c *cobra.Command) bool {
	return strings.Contains(c.Use, " FILE") && !strings.Contains(c.Use, "--") || strings.Contains(c.Use, " DATA")
}

// offerDrills offers the names of drills, once.
func offerDrills(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if all, _ := c.Flags().GetBool("all"); all || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, d := range drill.Drills() {
		out = append(out, cobra.CompletionWithDesc(d.Name, d.Text))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// offerControls offers the controls of the drill that is named, or of all if none is yet.
func offerControls(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	for _, d := range drill.Drills() {
		if len(args) > 0 && args[0] != d.Name {
			continue
		}
		for _, k := range d.Controls {
			out = append(out, cobra.CompletionWithDesc(k.Name, k.Text))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// offerNumbers offers the numbers of nodes that a command can do with.
func offerNumbers(list ...cobra.Completion) cobra.CompletionFunc {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)
}
