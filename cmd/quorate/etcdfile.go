package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/quorate/quorate/internal/errs"
	"github.com/quorate/quorate/internal/server"
)

// configFlag is the flag that names etcd's configuration file, in place of all others.
const configFlag = "config-file"

// etcdSections are the sections of etcd's configuration file, with how the flags of what stands there begin.
var etcdSections = map[string]struct{ files, allowed string }{
	"client-transport-security": {"", "client-cert-"}, "peer-transport-security": {"peer-", "peer-cert-"},
}

// etcdUnserved are what etcd's file may have that there is no flag for. Empty they are fine, as in etcd's example of such a file; otherwise they are
// refused, with the reason.
var etcdUnserved = map[string]string{
	"wal-dir": "the raft log is in the data directory", "cors": "the gateway answers no other site's pages", "host-whitelist": "hosts are not told apart",
	"discovery": "name the members with initial-cluster", "discovery-proxy": "there is no discovery", "discovery-srv": "name the members with initial-cluster",
	"discovery-srv-name": "there is no discovery", "discovery-config": "name the members with initial-cluster",
	"force-new-cluster": "members are fixed when a cluster is made", "unsafe-no-fsync": "nothing is acknowledged before it is synced",
	"skip-client-san-verification": "addresses are not compared with certificates",
}

// etcdFileOnly are what etcd's own example of a file still has of etcd 2. They have no effect in etcd either.
var etcdFileOnly = []string{
	"discovery-fallback", "proxy", "proxy-failure-wait", "proxy-refresh-interval", "proxy-dial-timeout", "proxy-write-timeout", "proxy-read-timeout",
}

// fromFile sets flags to what etcd's configuration file says.
func fromFile(ctx context.Context, fs *pflag.FlagSet, path string) error {
	all, err := server.ReadSettings(ctx, path)
	if err != nil {
		return err
	}
	for _, s := range all {
		bad := func(format string, args ...any) error {
			return errs.New(errs.Invalid, "--config-file %s, line %d: "+format, append([]any{path, s.Line}, args...)...)
		}
		section, name, within := strings.Cut(s.Name, "/")
		flag := s.Name
		if within {
			of, ok := etcdSections[section]
			if !ok {
				return bad("section %s is not one of client-transport-security and peer-transport-security", section)
			}
			if rest, ok := strings.CutPrefix(name, "allowed-"); ok {
				flag = of.allowed + "allowed-" + rest
			} else if why := etcdUnserved[name]; why != "" {
				flag = name
			} else {
				flag = of.files + name
			}
		}
		empty := s.Value == "" || s.Value == "false" || s.Value == "0"
		f := fs.Lookup(flag)
		switch {
		case slices.Contains(etcdFileOnly, flag):
			continue
		case etcdUnserved[flag] != "":
			if !empty {
				return bad("%s is not served: %s", s.Name, etcdUnserved[flag])
			}
			continue
		case f == nil || flag == configFlag || flag == "help":
			return bad("%s is not known, or not served; see quorate etcd --help for what is", s.Name)
		case s.Value == "":
			continue
		}
		if f.Value.Type() == "duration" && strings.Trim(s.Value, "0123456789") == "" {
			// etcd's file has nanoseconds.
			s.Value += "ns"
		}
		if err := fs.Set(flag, s.Value); err != nil {
			return bad("%s: %v", s.Name, err)
		}
	}
	return nil
}

// onlyFile says what else was set beside --config-file. etcd would ignore it.
func onlyFile(fs *pflag.FlagSet) error {
	var more []string
	fs.Visit(func(f *pflag.Flag) {
		if f.Name != configFlag {
			more = append(more, "--"+f.Name)
		}
	})
	if len(more) > 0 {
		return errs.New(errs.Invalid, "--config-file stands in place of all flags; leave out %s, or the file", strings.Join(more, ", "))
	}
	return nil
}
