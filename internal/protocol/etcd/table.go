package etcd

// call describes an RPC, for docs/compat/etcd.md.
type call struct {
	service, method string
	served          served
	// notes say what is different, or why it is refused. kine is what kine v0.16.4 makes of it, by its source.
	notes, kine string
}

type served uint8

const (
	whole served = iota
	partly
	refusedByName
)

func (s served) String() string { return [...]string{"yes", "in part", "refused by name"}[s] }

const (
	kineNo  = "not supported"
	kineYes = "yes"
)

// calls lists every RPC of the API. A test compares it with the services that are registered.
var calls = []call{
	{"KV", "Range", whole, "All options. A count takes as long as reading the keys. An answer of more than 256 MiB is refused: use a limit, or RangeStream. Those of more than 1 MiB that a node has under way have 1 GiB together; one more is refused with `etcdserver: too many requests`, and while 3/4 of that are taken a client has a minute for the whole of one. Keys alone have their leases, which etcd 3.7 leaves out.", "without sort, filters and serializable"},
	{"KV", "RangeStream", whole, "1,000 keys a message.", kineNo},
	{"KV", "Put", whole, "", "as one of four shapes of Txn"},
	{"KV", "DeleteRange", whole, "What one request deletes is bounded by 32 MiB of keys.", kineNo},
	{"KV", "Txn", whole, "Nested, at most 31 deep (etcd: as many as operations), with ranges and all comparisons. A comparison with the creation revision of a lock's key is its [fencing token](../howto/fencing.md). A key that is deleted and written by one request is refused also where only the state shows it, and where the end of the range is `\\x00`, where etcd overlooks it; a comparison with an unknown target or relation is refused always.", "four shapes"},
	{"KV", "Compact", whole, "Removal goes on in small steps. With physical=true the answer waits until this node has done it. Revision 0 is refused, which etcd takes once.", "acknowledged, not done"},
	{"Watch", "Watch", whole, "Progress that is asked for while a watch reads history is told when it has caught up. A watch with prev_kv is ended, with the reason, at a revision that has more than 256 MiB together with the versions before it. A stream whose client takes less than 64 KiB in a minute, of an answer that waits for it, ends with Unavailable, as all calls do.", kineYes},
	{"Lease", "LeaseGrant", whole, "TTLs below 2 s are raised to 2 s, as by etcd with its default timers.", "the id is the TTL"},
	{"Lease", "LeaseRevoke", whole, "", kineNo},
	{"Lease", "LeaseKeepAlive", whole, "A renewal is a replicated write.", kineNo},
	{"Lease", "LeaseTimeToLive", whole, "", kineNo},
	{"Lease", "LeaseLeases", whole, "", kineNo},
	{"Cluster", "MemberList", whole, "The header has the revision, which etcd leaves out.", kineYes},
	{"Cluster", "MemberAdd", refusedByName, whyMembers, kineNo},
	{"Cluster", "MemberRemove", refusedByName, whyMembers, kineNo},
	{"Cluster", "MemberUpdate", refusedByName, whyMembers, kineNo},
	{"Cluster", "MemberPromote", refusedByName, whyMembers, kineNo},
	{"Maintenance", "Status", whole, "The version is that of the etcd whose API this is. Sizes are those of the node's whole state store.", kineYes},
	{"Maintenance", "Alarm", partly, "The list is always empty; ACTIVATE is refused: " + whyNoAlarms + ".", kineNo},
	{"Maintenance", "Defragment", whole, "Nothing needs to be done: space is reclaimed all the time.", kineNo},
	{"Maintenance", "Hash", whole, "A checksum of its own kind over the keys of a revision, equal on all members, and before and after a compaction.", kineNo},
	{"Maintenance", "HashKV", whole, "As Hash, at the revision asked for. compact_revision is the one of now: etcd keeps what it answered at a compaction, with the compaction before that.", kineNo},
	{"Maintenance", "Snapshot", whole, "A bbolt file of one revision, without history before it, which etcdutl restores for etcd 3.6 and later. It takes its size in the node's directory for temporary files while it is sent, so that there are four at a time; more are refused with `etcdserver: too many requests`.", kineNo},
	{"Maintenance", "MoveLeader", whole, "The key space's first shard is handed over; the leader must be asked, as in etcd.", kineNo},
	{"Maintenance", "Downgrade", refusedByName, whyNoDowngrade, kineNo},
	{"Lock", "Lock", whole, "The key's creation revision is the fencing token. Errors of this service and of Election have the codes that they have elsewhere; etcd gives all of them the code Unknown.", kineNo},
	{"Lock", "Unlock", whole, "", kineNo},
	{"Election", "Campaign", whole, "A candidate that gives up leaves no key, unless it has a lease of its own and is told that its request timed out: then the key may be there until the lease ends.", kineNo},
	{"Election", "Proclaim", whole, "", kineNo},
	{"Election", "Leader", whole, "", kineNo},
	{"Election", "Observe", whole, "", kineNo},
	{"Election", "Resign", whole, "", kineNo},
	{"Auth", "AuthStatus", whole, "", kineNo},
	{"Auth", "AuthEnable", whole, "", kineNo},
	{"Auth", "AuthDisable", whole, "", kineNo},
	{"Auth", "Authenticate", whole, "Tokens are signed, and good on every node. They end with their user's password, or 5 minutes after the login; a connection that uses one keeps it. JSON web tokens, if those are configured, end with their time.", kineNo},
	{"Auth", "UserAdd", whole, "A hashed password, of bcrypt with a cost of at most 16, is taken in place of a password. Names have at most 1 KiB, and do not begin like those of [another space](../operations.md#several-etcd-key-spaces)'s users.", kineNo},
	{"Auth", "UserGet", whole, "", kineNo},
	{"Auth", "UserList", whole, "", kineNo},
	{"Auth", "UserDelete", whole, "", kineNo},
	{"Auth", "UserChangePassword", whole, "", kineNo},
	{"Auth", "UserGrantRole", whole, "", kineNo},
	{"Auth", "UserRevokeRole", whole, "", kineNo},
	{"Auth", "RoleAdd", whole, "", kineNo},
	{"Auth", "RoleGet", whole, "", kineNo},
	{"Auth", "RoleList", whole, "", kineNo},
	{"Auth", "RoleDelete", whole, "", kineNo},
	{"Auth", "RoleGrantPermission", whole, "A role's permissions take at most 1 MiB. One of an unknown type is refused.", kineNo},
	{"Auth", "RoleRevokePermission", whole, "", kineNo},
}
