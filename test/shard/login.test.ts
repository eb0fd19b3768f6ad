/** How a session is made: over TLS as the shard's URL says, and with whatever password PostgreSQL takes. */
import { assert, layer } from "@effect/vitest"
import { Effect, Redacted, Schedule } from "effect"
import { Reactivity } from "effect/reactivity"
import { chownSync, statSync, writeFileSync } from "node:fs"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { connectTo } from "../../src/shard/connectSession.ts"
import type { Tls } from "../../src/config/ConfigShards.ts"
import type { ShardSettings } from "../../src/config/ConfigShards.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { TestPostgres } from "../../bench/servers/privateServers.ts"
import { authority, certificate, key, otherAuthority } from "./certificates.ts"
import { oneShard } from "./livePostgres.ts"

/** Logs in, and tells whether the session is encrypted. */
const login = (shard: ShardSettings) =>
  Effect.gen(function* () {
    const connectFor = yield* connectTo(shard)
    const { sql } = yield* connectFor("inspect")
    const [row] = yield* sql<{ ssl: boolean }>`select ssl from pg_stat_ssl where pid = pg_backend_pid()`
    return row!.ssl
  }).pipe(Effect.provide(Reactivity.layer), Effect.scoped)

layer(TestPostgres.layer(1), { excludeTestServices: true, timeout: "60 seconds" })("login", (it) => {
  it.effect("a password is prepared as PostgreSQL does it", () =>
    Effect.gen(function* () {
      const shard = yield* oneShard
      const server = (yield* PostgresServers).shards[0]!
      for (const [stored, given] of [
        ["caf\u00e9", "cafe\u0301"],
        ["cafe\u0301", "caf\u00e9"],
        ["a b\u00e9", "a\u00a0b\u00e9"],
        ["a\u200bb", "a b"],
        ["\ufb01le", "file"],
        ["file", "\ufb01le"],
        ["so\u00adft", "soft"],
        ["\uff41\u2460", "a1"],
        // What may not be prepared is taken as it is: a control character, one that Unicode 3.2 did not have.
        ["cafe\u0301\u0080", "cafe\u0301\u0080"],
        ["\u{1f98a} \u00b5", "\u{1f98a} \u00b5"],
      ]) {
        yield* onShard(server, (sql) =>
          Effect.gen(function* () {
            yield* sql`drop role if exists someone`
            yield* sql`create role someone login password ${sql.literal(`'${stored}'`)}`
          }),
        )
        assert.isFalse(yield* login({ ...shard, user: "someone", password: Redacted.make(given!) }), given)
      }
      const wrong = yield* Effect.flip(login({ ...shard, user: "someone", password: Redacted.make("caf\u00e9") }))
      assert.strictEqual(wrong.reason._tag, "AuthenticationError")
    }),
  )

  it.effect("TLS as libpq's sslmode: nothing less than what is asked for", () =>
    Effect.gen(function* () {
      const shard = { ...(yield* oneShard), host: "localhost" }
      const byNumber = { ...shard, host: "127.0.0.1" }
      const server = (yield* PostgresServers).shards[0]!
      const refusal = (where: ShardSettings, mode: Tls["mode"], ca?: string) =>
        Effect.map(Effect.flip(login({ ...where, tls: { mode, ca } })), ({ reason }) => String(reason.cause))
      assert.include(yield* refusal(shard, "require"), "The server does not support TLS")

      const { gid, uid } = statSync(server.dataDir)
      for (const [name, content] of [
        ["server.crt", certificate],
        ["server.key", key],
      ] as const) {
        writeFileSync(`${server.dataDir}/${name}`, content, { mode: 0o600 })
        chownSync(`${server.dataDir}/${name}`, uid, gid)
      }
      yield* onShard(server, (sql) =>
        Effect.gen(function* () {
          yield* sql`alter system set ssl = on`
          yield* sql`select pg_reload_conf()`
          yield* sql<{ ssl: string }>`select current_setting('ssl') as ssl`.pipe(
            Effect.repeat({ until: ([row]) => row!.ssl === "on", schedule: Schedule.spaced("20 millis") }),
            Effect.timeout("5 seconds"),
          )
        }),
      )
      assert.isFalse(yield* login(shard))
      assert.isTrue(yield* login({ ...shard, tls: { mode: "require" } }))
      assert.isTrue(yield* login({ ...byNumber, tls: { mode: "verify-ca", ca: authority } }))
      assert.isTrue(yield* login({ ...shard, tls: { mode: "verify-full", ca: authority } }))
      assert.include(yield* refusal(byNumber, "verify-full", authority), "does not match certificate's altnames")
      for (const mode of ["verify-ca", "verify-full"] as const) {
        assert.match(yield* refusal(shard, mode), /unable to verify|self-signed|unable to get/)
        assert.match(yield* refusal(shard, mode, otherAuthority), /unable to verify|self-signed|unable to get/)
      }
    }),
  )
})
