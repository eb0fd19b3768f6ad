/** `objectlog migrate` as an operator runs it, and the codes with which it and a worker end. */
import { assert, layer } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import type { ShardSettings } from "../../src/config/ConfigShards.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { clientOf, oneShardWith, twoShards } from "../shard/livePostgres.ts"

const program = fileURLToPath(new URL("../../src/objectlog.js", import.meta.url))

const run = (command: string, shards: string) =>
  Effect.callback<{ readonly code: number; readonly out: string; readonly err: string }>((resume) => {
    const { HOME = "", PATH = "" } = process.env
    const env = { HOME, PATH, POSTGRES_IPS: shards, NATS_URL: "127.0.0.1:1", LOG_LEVEL: "warn" }
    execFile(process.execPath, [program, command], { env, timeout: 30_000 }, (error, out, err) =>
      resume(Effect.succeed({ code: error === null ? 0 : Number(error.code ?? -1), out, err })),
    )
  })

const url = ({ database, host, name, password, port, user }: ShardSettings, options = "") =>
  `${name}=postgres://${user}:${Redacted.value(password)}@${host}:${port}/${database}${options}`

layer(TestPostgres.layer(2), { excludeTestServices: true, timeout: "60 seconds" })("objectlog migrate", (it) => {
  it.effect("makes the tables and records the placement", () =>
    Effect.gen(function* () {
      const shards = (yield* twoShards).map(({ settings }) => settings)
      const { code, out } = yield* run("migrate", shards.map((shard) => url(shard)).join(","))
      assert.deepStrictEqual(
        [code, out],
        [0, "a: tables of version 4, placement recorded\nb: tables of version 4, placement recorded\n"],
      )
      const rows = yield* (yield* clientOf(shards[1]!))`select name, state from shard`
      assert.deepStrictEqual(rows, [{ name: "b", state: "ready" }])
    }),
  )

  it.effect("waits for no shard that is away, and migrates the others", () =>
    Effect.gen(function* () {
      const shards = (yield* twoShards).map(({ settings }) => settings)
      const { code, err } = yield* run("migrate", `${url({ ...shards[0]!, port: 1 })},${url(shards[1]!)}`)
      assert.strictEqual(code, 1)
      assert.match(err, /^objectlog: shard a: verify failed \(connection\): connect ECONNREFUSED 127\.0\.0\.1:1$/m)
      assert.lengthOf(yield* (yield* clientOf(shards[1]!))`select 1 from log_entries`, 0)
    }),
  )

  it.effect("a worker's start is refused in one line, with 2, for what only an operator can change", () =>
    Effect.gen(function* () {
      const shard = yield* oneShardWith("encoding 'SQL_ASCII' locale 'C' template template0")
      for (const command of ["worker", "migrate"]) {
        const encoding = yield* run(command, url(shard))
        assert.strictEqual(encoding.code, 2, encoding.err)
        assert.match(
          encoding.err,
          /^objectlog: shard a at \S+ has a database in the encoding SQL_ASCII: UTF8 is needed/m,
        )
        const option = yield* run(command, url(shard, "?sslMode=require"))
        assert.deepStrictEqual(option, {
          code: 2,
          out: "",
          err:
            "objectlog: POSTGRES_IPS: expected no options but weight, sslmode, sslrootcert, application_name, " +
            `connect_timeout in a shard's URL, got "sslMode"\n`,
        })
        assert.strictEqual((yield* run(command, "")).code, 2)
      }
    }),
  )
})
