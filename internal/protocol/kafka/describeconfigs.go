package kafka

import (
	"context"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/quorate/quorate/internal/errs"
)

// DescribeConfigs (key 32)
//
// Behaviour: every setting that a topic has, with its source; the few of a broker that clients look at.
//
// Versions: 0 to 4.
//
// Not supported: other kinds of resources; they are refused.

func (s *Server) describeConfigs(ctx context.Context, _ *conn, _ header, r kmsg.Request) (kmsg.Response, error) {
	req := r.(*kmsg.DescribeConfigsRequest)
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	resources := mergeResources(req.Resources)
	for i := range resources {
		q := &resources[i]
		x := kmsg.NewDescribeConfigsResponseResource()
		x.ResourceType, x.ResourceName = q.ResourceType, q.ResourceName
		list, err := s.configs(ctx, q)
		if err != nil {
			x.ErrorCode, x.ErrorMessage = codeOf(err, faceAdmin), text(err)
		}
		for j := range list {
			c := &list[j]
			if q.ConfigNames != nil && !slices.Contains(q.ConfigNames, c.name) {
				continue
			}
			y := kmsg.NewDescribeConfigsResponseResourceConfig()
			y.Name, y.Value, y.ReadOnly, y.IsDefault = c.name, &c.value, c.fixed || q.ResourceType != kmsg.ConfigResourceTypeTopic, !c.set
			y.Source, y.ConfigType = c.source(), c.kind
			if req.IncludeDocumentation {
				y.Documentation = &c.about
			}
			x.Configs = append(x.Configs, y)
		}
		resp.Resources = append(resp.Resources, x)
	}
	return resp, nil
}

// mergeResources makes one of the questions about the same resource.
func mergeResources(list []kmsg.DescribeConfigsRequestResource) []kmsg.DescribeConfigsRequestResource {
	type resource struct {
		kind kmsg.ConfigResourceType
		name string
	}
	for i := range list {
		if len(list[i].ConfigNames) == 0 {
			// No names are all of them, as in Kafka (ConfigHelper).
			list[i].ConfigNames = nil
		}
	}
	return merge(list, func(q *kmsg.DescribeConfigsRequestResource) resource {
		return resource{q.ResourceType, q.ResourceName}
	}, func(to, more *kmsg.DescribeConfigsRequestResource) {
		to.ConfigNames = joined(to.ConfigNames, more.ConfigNames)
	})
}

func (s *Server) configs(ctx context.Context, q *kmsg.DescribeConfigsRequestResource) ([]topicConfig, error) {
	switch q.ResourceType {
	case kmsg.ConfigResourceTypeTopic:
		t, err := s.topics.ByName(ctx, q.ResourceName)
		if err != nil {
			return nil, err
		}
		return topicConfigs(t), nil
	case kmsg.ConfigResourceTypeBroker:
		w, err := s.world()
		if err != nil {
			return nil, err
		}
		if q.ResourceName != "" && q.ResourceName != strconv.Itoa(int(w.topo.Self)) {
			return nil, errs.New(errs.Invalid, "this is broker %d, not %q", w.topo.Self, q.ResourceName)
		}
		info, _ := w.topo.Shard(w.space.Shards[0])
		partitions := int(s.cfg.Partitions)
		if partitions == 0 {
			partitions = len(w.space.Shards)
		}
		return []topicConfig{
			{"auto.create.topics.enable", strconv.FormatBool(!s.cfg.NoAutoCreate), "Whether a Metadata request may create topics.", kmsg.ConfigTypeBoolean, false, true},
			{"default.replication.factor", strconv.Itoa(len(info.Replicas)), "The replicas of every shard.", kmsg.ConfigTypeInt, false, true},
			{"num.partitions", strconv.Itoa(partitions), "The partitions of a topic that is created without saying.", kmsg.ConfigTypeInt, false, true},
		}, nil
	}
	return nil, errs.New(errs.Invalid, "resources of kind %d have no settings here; topics (2) and brokers (4) have", q.ResourceType)
}
