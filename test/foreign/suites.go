//go:build suites

// Package foreign names the suites that run.sh builds, so that go.mod and go.sum have what they need. Nobody compiles it.
package foreign

import (
	_ "github.com/twmb/franz-go/pkg/kgo"
	_ "go.etcd.io/etcd/tests/v3/common"
	_ "go.etcd.io/etcd/tests/v3/e2e"
	_ "go.etcd.io/etcd/tests/v3/framework/integration"
)
