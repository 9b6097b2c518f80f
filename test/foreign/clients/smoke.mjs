// What npm's etcd3 does in its examples, against one node: smoke.mjs PORT.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Etcd3 } from 'etcd3';

const client = new Etcd3({ hosts: `127.0.0.1:${process.argv[2]}` });

const parts = {
  async kv() {
    await client.put('js/a').value('1');
    assert.equal(await client.get('js/a').string(), '1');
    await client.put('js/b').value('2');
    assert.deepEqual(await client.getAll().prefix('js/').strings(), { 'js/a': '1', 'js/b': '2' });
    assert.deepEqual(await client.getAll().prefix('js/').sort('Key', 'Descend').keys(), ['js/b', 'js/a']);
    assert.equal(await client.getAll().prefix('js/').count(), 2);
    assert.equal((await client.delete().key('js/b')).deleted, '1');
    assert.equal(await client.get('js/b'), null);
  },
  async txn() {
    const yes = await client.if('js/a', 'Value', '==', '1').then(client.put('js/t').value('yes')).else(client.put('js/t').value('no')).commit();
    assert.equal(yes.succeeded, true);
    const no = await client.if('js/a', 'Version', '>', 7).then(client.delete().key('js/t')).else(client.get('js/t')).commit();
    assert.equal(no.succeeded, false);
    assert.equal(no.responses[0].response_range.kvs[0].value.toString(), 'yes');
  },
  async stm() {
    await client.put('js/n').value('1');
    await Promise.all([1, 2, 3].map(() => client.stm().transact(async tx => {
      await tx.put('js/n').value(Number(await tx.get('js/n')) + 1);
    })));
    assert.equal(await client.get('js/n').number(), 4);
  },
  async watch() {
    const watcher = await client.watch().prefix('js/w/').create();
    const put = once(watcher, 'put');
    await client.put('js/w/1').value('x');
    assert.equal((await put)[0].key.toString(), 'js/w/1');
    const gone = once(watcher, 'delete');
    await client.delete().key('js/w/1');
    assert.equal((await gone)[0].key.toString(), 'js/w/1');
    await watcher.cancel();
  },
  async lease() {
    const lease = client.lease(10);
    await lease.put('js/l').value('x');
    assert.equal(await client.get('js/l').string(), 'x');
    await lease.keepaliveOnce();
    await lease.revoke();
    assert.equal(await client.get('js/l'), null);
  },
  async lock() {
    const first = client.lock('js').ttl(10);
    await first.acquire();
    await assert.rejects(client.lock('js').ttl(10).acquire());
    await first.release();
    await client.lock('js').do(async () => {});
  },
  async election() {
    const election = client.election('js', 10);
    const campaign = election.campaign('me');
    await once(campaign, 'elected');
    assert.equal(await election.leader(), 'me');
    await campaign.resign();
  },
};
for (const [name, part] of Object.entries(parts)) {
  await part();
  console.log('etcd3 for node:', name, 'ok');
}
client.close();
