// What a user of E2B's JavaScript SDK does in a day, against the host that the environment names.
// The argument is the package that holds the version to try.

import assert from 'node:assert/strict'

const { CommandExitError, FilesystemEventType, Sandbox } = await import(process.argv[2])

const decoder = new TextDecoder()

async function commands(sandbox) {
  let seen = ''
  const result = await sandbox.commands.run('echo $A; echo err >&2', {
    envs: { A: 'ü' },
    onStdout: (data) => (seen += data),
  })
  assert.deepEqual([result.stdout, result.stderr, seen], ['ü\n', 'err\n', 'ü\n'])
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
  const reader = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(reader.pid, 'typed\n')
  assert((await sandbox.commands.list()).some((process) => process.pid === reader.pid))
  const again = await sandbox.commands.connect(reader.pid)
  assert(await sandbox.commands.kill(reader.pid))
  await assert.rejects(again.wait(), (error) => error.stdout === 'typed\n')
}

async function files(sandbox) {
  await sandbox.files.write('folder/ü', 'text')
  assert.equal(await sandbox.files.read('folder/ü'), 'text')
  const data = new Uint8Array(2 * 1024 * 1024).map((_, index) => index % 251)
  await sandbox.files.write('folder/data', new Blob([data]))
  assert.deepEqual(Buffer.from(await sandbox.files.read('folder/data', { format: 'bytes' })), Buffer.from(data))
  assert.deepEqual((await sandbox.files.list('folder')).map((entry) => entry.name), ['data', 'ü'])
  await sandbox.files.rename('folder/data', 'folder/moved')
  await sandbox.files.remove('folder/moved')
  assert.equal(await sandbox.files.exists('folder/moved'), false)
  const answer = await fetch(await sandbox.downloadUrl('folder/ü'))
  assert.equal(await answer.text(), 'text')
}

async function watching(sandbox) {
  const event = await new Promise((resolve, reject) => {
    const watcher = sandbox.files.watchDir('folder', resolve, { recursive: true })
    watcher.then(() => sandbox.files.makeDir('folder/deep')).catch(reject)
  })
  assert.deepEqual([event.name, event.type], ['deep', FilesystemEventType.CREATE])
}

async function terminal(sandbox) {
  let said = ''
  const handle = await sandbox.pty.create({
    cols: 100,
    rows: 20,
    timeoutMs: 20_000,
    onData: (data) => (said += decoder.decode(data)),
  })
  await sandbox.pty.resize(handle.pid, { cols: 120, rows: 30 })
  await sandbox.pty.sendInput(handle.pid, new TextEncoder().encode('stty size; exit\n'))
  await handle.wait()
  assert.match(said, /30 120/)
}

async function life(sandbox) {
  assert(await sandbox.isRunning())
  assert.deepEqual((await sandbox.getInfo()).metadata, { scenario: 'javascript' })
  const page = Sandbox.list({ query: { metadata: { scenario: 'javascript' } } })
  assert((await page.nextItems()).some((info) => info.sandboxId === sandbox.sandboxId))
  await sandbox.pause()
  assert.equal((await sandbox.getInfo()).state, 'paused')
  const resumed = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 100_000 })
  assert.equal((await resumed.commands.run('cat folder/ü')).stdout, 'text')
}

async function copies(sandbox) {
  await sandbox.files.write('/workspace/state', 'before')
  const { snapshotId } = await sandbox.createSnapshot()
  await sandbox.files.write('/workspace/state', 'after')
  const copy = await Sandbox.create(snapshotId, { timeoutMs: 60_000 })
  assert.equal(await copy.files.read('/workspace/state'), 'before')
  await copy.kill()
  assert(await Sandbox.deleteSnapshot(snapshotId))
  const [fork] = await sandbox.fork()
  assert.equal(await fork.files.read('/workspace/state'), 'after')
  await fork.kill()
}

const sandbox = await Sandbox.create({ timeoutMs: 100_000, metadata: { scenario: 'javascript' } })
const chapters = [commands, files, watching, terminal, life]
if (process.env.HOST_ROOT === 'layers') chapters.push(copies) // elsewhere a host cannot copy sandboxes
for (const chapter of chapters) {
  const began = performance.now()
  await chapter(sandbox)
  console.log(`${chapter.name}: ${Math.round(performance.now() - began)} ms`)
}
assert(await sandbox.kill())
console.log('done')
process.exit(0) // connections that are kept alive would hold it
