package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// api is one line of the table of what is served.
type api struct {
	key  int16
	name string
	// min and max are the versions served. shown is the lowest version announced: Produce announces more than it serves.
	shown, min, max int16
	shape           shape
	// handle answers a request. A nil response means that none is sent; an error closes the connection.
	handle func(ctx context.Context, c *conn, h header, req kmsg.Request) (kmsg.Response, error)
	// about is a line for the documentation, not what is left out.
	about, not string
}

// apis returns everything that is served, by key. The layouts follow Kafka's message definitions.
func (s *Server) apis() []api {
	fetchShape := parseShape(12, "i@0-14 i i i@3 b@4 i@7 i@7 [s@0-12 u@13 [i i@9 l i@12 l@5 i]] [s@7-12 u@13 (i)]@7 s@11")
	fetchShape.tagRefused = 1
	return []api{
		{0, "Produce", 0, 3, 12, parseShape(9, "s@3 h i [s [i y]]"), s.produce,
			"Acks 0, 1 and all; every acknowledgement means a majority has it on disk. Idempotent producers: one that a partition has not seen for a day, or ever, has to begin with sequence 0, and is told UNKNOWN_PRODUCER_ID, upon which clients number anew; Kafka accepts any sequence then, and so does not notice that earlier batches are missing. All codecs. Records stamped more than an hour ahead are refused, as by Kafka. Each batch is looked into as by Kafka, compressed ones too: records that are not as many as it counts, not well formed, or cannot be unpacked are INVALID_RECORD, and a latest time stamp that is not that of the records is set right. Records that are not numbered from 0 without a gap are refused as well; Kafka numbers compressed ones anew, and stores others as they are. A compressed batch may unpack to 128 MiB, and those of one request to 2 GiB; what is more is MESSAGE_TOO_LARGE. Topics with `quorate.fence=LOCK` want a fencing token in each record: [how to](../howto/fencing.md).", "transactions"},
		{1, "Fetch", 4, 4, 17, fetchShape, s.fetch,
			"Long poll with minimum and maximum bytes; the first batch whole even if too large; topic ids from version 13.", "incremental sessions (session id 0), followers"},
		{2, "ListOffsets", 1, 1, 10, parseShape(6, "i b@2 [s [i i@4 l]] i@10"), s.listOffsets,
			"First, next, latest time stamp and by time: exact to the record.", "tiered storage"},
		{3, "Metadata", 0, 0, 13, parseShape(9, "[u@10 s] b@4 b@8-10 b@8"), s.metadata,
			"Cluster id, controller, topic ids, leader epochs; creates topics if the client allows it (before version 4: yes).", "authorized operations"},
		{8, "OffsetCommit", 2, 2, 9, parseShape(8, "s i s s@7 l@2-4 [s [i l i@6 s]]"), s.offsetCommit,
			"Fenced by generation and instance; metadata up to 4 KiB.", "per-request retention"},
		{9, "OffsetFetch", 1, 1, 9, parseShape(6, "s@0-7 [s (i)]@0-7 [s s@9 i@9 [s (i)]]@8 b@7"), s.offsetFetch,
			"An unknown group has offset -1 everywhere, without an error.", ""},
		{10, "FindCoordinator", 0, 0, 6, parseShape(3, "s@0-3 b@1 (s)@4"), s.findCoordinator,
			"The leader of the group's shard.", "transaction and share coordinators"},
		{11, "JoinGroup", 0, 0, 9, parseShape(6, "s i i@1 s s@5 s [s y] s@8"), s.joinGroup,
			"The classic protocol, with static members (KIP-345) and required member ids (KIP-394).", "the consumer protocol (KIP-848)"},
		{12, "Heartbeat", 0, 0, 4, parseShape(4, "s i s s@3"), s.heartbeat, "", ""},
		{13, "LeaveGroup", 0, 0, 5, parseShape(4, "s s@0-2 [s s s@5]@3"), s.leaveGroup, "", ""},
		{14, "SyncGroup", 0, 0, 5, parseShape(4, "s i s s@3 s@5 s@5 [s y]"), s.syncGroup, "", ""},
		{15, "DescribeGroups", 0, 0, 6, parseShape(5, "(s) b@3"), s.describeGroups, "", "authorized operations"},
		{16, "ListGroups", 0, 0, 5, parseShape(3, "(s)@4 (s)@5"), s.listGroups, "", ""},
		{18, "ApiVersions", 0, 0, 4, parseShape(3, "s@3 s@3"), s.apiVersions, "", ""},
		{19, "CreateTopics", 2, 2, 7, parseShape(5, "[s i h [i (i)] [s s]] i b"), s.createTopics,
			"retention.ms, retention.bytes, max.message.bytes and quorate.fence; other settings are refused by name. Names that begin with `__changes.` or `__quorate`, and those of Kafka's own topics, are refused as well.", "replica assignments, compaction"},
		{22, "InitProducerId", 0, 0, 5, parseShape(2, "s i l@3 h@3"), s.initProducerID, "Ids for idempotent producers.", "transactional ids"},
		{23, "OffsetForLeaderEpoch", 0, 0, 4, parseShape(4, "i@3 [s [i i@2 i]]"), s.offsetForLeaderEpoch, "", ""},
		{32, "DescribeConfigs", 0, 0, 4, parseShape(4, "[b s (s)] b@1 b@3"), s.describeConfigs, "Topics and brokers.", ""},
		{60, "DescribeCluster", 0, 0, 2, parseShape(0, "b b@1 b@2"), s.describeCluster, "", "authorized operations"},
	}
}
