"""What python3-etcd3 does in its examples, against one node: smoke.py PORT."""

import sys
import threading

import etcd3


def check(what, ok, *said):
    if not ok:
        sys.exit(f"python3-etcd3: {what}: {said}")


def kv(c):
    c.put("py/a", "1")
    value, meta = c.get("py/a")
    check("get", value == b"1" and meta.version == 1, value, meta)
    check("put with the value before", c.put("py/a", "2", prev_kv=True).prev_kv.value == b"1")
    c.put("py/b", "3")
    check("prefix", [(v, m.key) for v, m in c.get_prefix("py/")] == [(b"2", b"py/a"), (b"3", b"py/b")])
    check("descending", [v for v, _ in c.get_prefix("py/", sort_order="descend", sort_target="key")] == [b"3", b"2"])
    check("replace", c.replace("py/a", "2", "4") and not c.replace("py/a", "2", "5"))
    check("create", not c.put_if_not_exists("py/a", "x") and c.put_if_not_exists("py/c", "x"))
    check("delete", c.delete("py/c") and not c.delete("py/c"))
    check("missing", c.get("py/none") == (None, None))


def txn(c):
    ok, said = c.transaction(
        compare=[c.transactions.value("py/a") == "4", c.transactions.version("py/none") == 0],
        success=[c.transactions.put("py/t", "yes"), c.transactions.get("py/a")],
        failure=[c.transactions.put("py/t", "no")],
    )
    check("txn", ok and said[1][0][0] == b"4", ok, said)
    ok, _ = c.transaction(compare=[c.transactions.value("py/a") == "9"], success=[], failure=[c.transactions.delete("py/t")])
    check("txn that fails", not ok and c.get("py/t")[0] is None)


def watch(c):
    events, cancel = c.watch_prefix("py/w/")
    c.put("py/w/1", "x")
    c.delete("py/w/1")
    got = [next(events), next(events)]
    cancel()
    check("watch", isinstance(got[0], etcd3.events.PutEvent) and isinstance(got[1], etcd3.events.DeleteEvent), got)
    heard = threading.Event()
    watch_id = c.add_watch_callback("py/w/2", lambda _: heard.set())
    c.put("py/w/2", "x")
    check("watch with a callback", heard.wait(10))
    c.cancel_watch(watch_id)
    rev = c.get("py/a")[1].mod_revision
    events, cancel = c.watch("py/a", start_revision=rev)
    check("watch of the past", next(events).mod_revision == rev)
    cancel()


def lease(c):
    held = c.lease(30)
    c.put("py/l", "x", lease=held)
    check("time to live", 0 < held.remaining_ttl <= 30 and held.granted_ttl == 30 and held.keys == [b"py/l"])
    check("refresh", held.refresh()[0].TTL == 30)
    held.revoke()
    check("revoke", c.get("py/l") == (None, None))


def lock(c):
    first, second = c.lock("py", ttl=10), c.lock("py", ttl=10)
    check("acquire", first.acquire(timeout=5) and first.is_acquired())
    # Debian's package cannot wait for a lock: its own call of tenacity fails. So the second one is tried when the lock is free.
    first.release()
    check("free again", second.acquire(timeout=5))
    second.release()


def cluster(c):
    check("members", len(list(c.members)) == 1)
    check("status", c.status().version.startswith("3."), c.status())
    rev = c.get("py/a")[1].mod_revision
    c.compact(rev)
    c.defragment()
    check("hash", c.hash() != 0)


client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]))
for part in (kv, txn, watch, lease, lock, cluster):
    part(client)
    print("python3-etcd3:", part.__name__, "ok")
client.close()
