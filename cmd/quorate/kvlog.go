package main

import (
	"bufio"

	"github.com/spf13/cobra"

	"github.com/quorate/quorate/internal/server"
	"github.com/quorate/quorate/internal/shard"
)

// etcdShard is the shard that has the keys of etcd's API, the first one.
const etcdShard shard.ID = 1

// newKVLog is for those who check histories, and not shown to others.
func newKVLog() *cobra.Command {
	return &cobra.Command{
		Use: "kv-log DATA", Short: "Print what a stopped node's log did to the keys of etcd's API, in order, as JSON", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := bufio.NewWriter(cmd.OutOrStdout())
			if err := server.ReplayKV(args[0], etcdShard, w); err != nil {
				return err
			}
			return w.Flush()
		},
	}
}
