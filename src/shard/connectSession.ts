/**
 * Makes a session with a shard, and sees to it that it is what the work relies on: its settings, its server, its database.
 *
 * The settings are made by statements, since a pooler refuses them as parameters of the connection. They are read back, and
 * a mark with them that only this session has: a pooler that gives the statements of one session to several connections, or
 * one connection to several sessions, loses or mixes the marks. Both statements are sent at once, and only here: nothing is
 * added to a transaction.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Redacted } from "effect"
import { payloadMax } from "../contract/limits.ts"
import { Reactivity } from "effect/reactivity"
import type { SqlError } from "effect/sql"
import { randomUUID } from "node:crypto"
import type { ConnectionOptions } from "node:tls"
import { sessionSeconds } from "./limits.ts"
import { connectSeconds, type ShardSettings, type Tls } from "../config/ConfigShards.ts"
import { saslprep } from "./saslprep.ts"
import type { Connect } from "./sessions.ts"
import { pipelined } from "./transaction.ts"
import { unfit } from "./transient.ts"

/** What messages call a shard's place. */
export const addressOf = ({ host, port }: ShardSettings): string => `${host}:${port}`

/**
 * What a session is for. `serve`: work on a shard that is verified. `inspect`: finding out whether it is that shard. Only
 * `append` has to write.
 */
export type Purpose = "append" | "read" | "inspect"

/** The name of the mark. */
const mark = "objectlog.session"

const settings = {
  // A worker that died must not keep the locks of its objects, and nobody waits long for them.
  lock_timeout: `${sessionSeconds.lock}s`,
  idle_in_transaction_session_timeout: `${sessionSeconds.idleInTransaction}s`,
  statement_timeout: `${sessionSeconds.statement}s`,
  // Every statement is a walk along an index. A plan that was made while the tables were empty would scan or sort them
  // until the next ANALYZE; with these there is no such plan, and none has to be made again for each batch.
  plan_cache_mode: "force_generic_plan",
  enable_seqscan: "off",
  enable_bitmapscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
  enable_sort: "off",
  jit: "off",
}

/** Not read back: they are of no effect, and 0, where a pooler on the server's machine uses a socket without TCP. */
const keepAlives = {
  tcp_keepalives_idle: "10",
  tcp_keepalives_interval: "5",
  tcp_keepalives_count: "3",
}

const written = { ...settings, ...keepAlives }
const verified = Object.entries(settings).map(([name, value]) => ({ name, value }))

/** Settings that were made and are gone. Whoever reads it has a pooler in front of the database. */
export const settingsLost = "settings"

const lost = (what: string) =>
  unfit(
    settingsLost,
    `${what} was not kept between two statements: a pooler must keep a session to one connection (pool_mode = session)`,
  )

/** Makes sessions of a purpose. */
export const connectTo = Effect.fnUntraced(function* (
  shard: ShardSettings,
): Effect.fn.Return<(purpose: Purpose) => Connect, never, Reactivity.Reactivity> {
  const reactivity = yield* Reactivity.Reactivity
  const { database, host, name, port, user } = shard
  const options = {
    host,
    port,
    username: user,
    database,
    ssl: shard.tls === undefined ? false : tlsOptions(shard.tls),
    applicationName: shard.applicationName ?? "objectlog",
    connectTimeout: `${shard.connectSeconds ?? connectSeconds.default} seconds`,
    keepAlive: "10 seconds",
    // A row holds an entry of at most `payloadMax` bytes, and some numbers.
    maxMessageSize: payloadMax + 64 * 1024,
    // What is given up is not waited for: its session is closed.
    multiplex: true,
    spanAttributes: {
      "objectlog.shard": name,
      "db.namespace": database,
      "server.address": host,
      "server.port": port,
    },
  } satisfies PgClient.PgClientConfig
  const login = (password: Redacted.Redacted) =>
    Effect.provideService(PgClient.makeClient({ ...options, password }), Reactivity.Reactivity, reactivity)
  const given = shard.password
  const prepared = Redacted.make(saslprep(Redacted.value(given)))
  const client =
    Redacted.value(prepared) === Redacted.value(given)
      ? login(given)
      : // As it was given: for a server that asks for it in another way than SCRAM, or did not prepare it either.
        Effect.catchIf(
          login(prepared),
          (error) => error.reason._tag === "AuthenticationError",
          () => login(given),
        )
  return (purpose) =>
    Effect.gen(function* () {
      const sql = yield* client
      const own = randomUUID()
      const isFit = Effect.flatMap(ask(sql), (answer) => judge(answer, own, purpose))
      yield* pipelined([configure(sql, own), isFit, purpose === "inspect" ? Effect.void : isShard(sql, name)])
      return { sql, isFit }
    })
})

const tlsOptions = ({ ca, mode }: Tls): ConnectionOptions => ({
  rejectUnauthorized: mode !== "require",
  ...(ca === undefined ? {} : { ca }),
  ...(mode === "verify-full" ? {} : { checkServerIdentity: () => undefined }),
})

const configure = (sql: PgClient.PgClient, own: string) => {
  const entries = [...Object.entries(written), [mark, own] as const]
  return sql`
    select set_config(name, value, false)
    from unnest(${entries.map(([setting]) => setting)}::text[], ${entries.map(([, value]) => value)}::text[])
      as wanted (name, value)`
}

interface Answer {
  readonly mark: string | null
  readonly settings: ReadonlyArray<string>
  readonly standby: boolean
  readonly read_only: string
}

const ask = (sql: PgClient.PgClient): Effect.Effect<Answer, SqlError.SqlError> =>
  Effect.map(
    sql<Answer>`
      select
        current_setting(${mark}, true) as mark,
        array(select current_setting(name) from unnest(${verified.map(({ name }) => name)}::text[]) as name) as settings,
        pg_is_in_recovery() as standby,
        current_setting('transaction_read_only') as read_only`,
    ([answer]) => answer!,
  )

const judge = (answer: Answer, own: string, purpose: Purpose): Effect.Effect<void, SqlError.SqlError> => {
  if (answer.mark !== own) return Effect.fail(lost("the session"))
  const changed = verified.find(({ value }, index) => answer.settings[index] !== value)
  if (changed !== undefined) return Effect.fail(lost(changed.name))
  // Also for reads: a standby may lack entries that were answered.
  if (answer.standby) return Effect.fail(unfit("25006", "the server is a standby"))
  if (purpose === "append" && answer.read_only === "on") return Effect.fail(unfit("25006", "the database is read-only"))
  return Effect.void
}

/** Is it the database that was verified? An address may lead to another one since. */
const isShard = (sql: PgClient.PgClient, name: string): Effect.Effect<void, SqlError.SqlError> =>
  Effect.flatMap(sql`select 1 from shard where name = ${name} and state = 'ready'`, ([row]) =>
    row === undefined ? Effect.fail(unfit("placement", `the database is not that of shard ${name}`)) : Effect.void,
  )
