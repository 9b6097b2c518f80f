package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/telemetry"
)

// version is set by the release build.
var version = "0.1.0-dev"

// newRoot lists the commands. A new one is one line here.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "quorate",
		Short: "Keys, events and coordination in one replicated engine, spoken to over etcd, Redis and Kafka",
		Long: `Quorate keeps keys, cache and events in one replicated, fsynced engine. Stock etcd, Redis and Kafka clients talk to it, and a
state change and its event commit together. Drills prove it on your own cluster.`,
		Example:       "  quorate demo            three nodes, a small shop, and the leader killed again and again\n  quorate dev             one node in memory, to try etcdctl, redis-cli and kcat on",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errs.New(errs.Invalid, "%v", err) })
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "look", Title: "Look:"}, &cobra.Group{ID: "prove", Title: "Prove:"})
	root.AddCommand(newDemo(), newDev(), newServer(), newEtcd(), newImport(), newKVLog(), newStatus(), newDrill(), newBench(), newVersion())
	root.SetHelpCommand(newHelp(root))
	return root
}

// checkUsage makes every wrong call of c, and of the commands below it, an error of usage, as wrong flags are: cobra shows the help for some of
// them, and calls it a success.
func checkUsage(c *cobra.Command) {
	for _, below := range c.Commands() {
		checkUsage(below)
	}
	args := c.Args
	if !c.Runnable() {
		c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		args = nil
	}
	c.Args = func(cmd *cobra.Command, given []string) error {
		if cmd.HasSubCommands() && len(given) > 0 {
			return unknownCommand(cmd, given[0])
		}
		if args == nil {
			return nil
		}
		return errs.Wrap(errs.Invalid, args(cmd, given), "wrong arguments")
	}
}

// unknownCommand is the error for a name that is none of the commands below c.
func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	if like := c.SuggestionsFor(name); len(like) > 0 {
		return errs.New(errs.Invalid, "%s has no command %q; did you mean %s?", c.CommandPath(), name, strings.Join(like, " or "))
	}
	return errs.New(errs.Invalid, "%s has no command %q", c.CommandPath(), name)
}

// newHelp is cobra's own, but that an unknown command is an error.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
			if at, _, err := root.Find(args); err == nil {
				for _, c := range at.Commands() {
					if c.IsAvailableCommand() {
						out = append(out, c.Name())
					}
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			switch {
			case err != nil:
				return errs.Wrap(errs.Invalid, err, "no help")
			case len(rest) > 0:
				return unknownCommand(c, rest[0])
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version", GroupID: "look", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			revision := ""
			if bi, ok := debug.ReadBuildInfo(); ok {
				for _, s := range bi.Settings {
					if s.Key == "vcs.revision" {
						revision = s.Value
					}
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{
					"apiVersion": apiVersion, "version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "revision": revision,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "quorate %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// logFlags are the flags of commands that run nodes in this process.
type logFlags struct{ level, format string }

func (l *logFlags) add(c *cobra.Command, level string) {
	c.Flags().StringVar(&l.level, "log-level", level, "debug, info, warn or error")
	c.Flags().StringVar(&l.format, "log-format", "", "console or json (default: console on a terminal)")
}

func (l *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	format := l.format
	if format == "" {
		format = "json"
		if isTerminal(os.Stderr) {
			format = "console"
		}
	}
	return telemetry.Logger(w, format, l.level)
}
