/**
 * One worker's shards in a simulation: the real `appendEntries`, `readPage` and error classes, on Effect's real SQL client,
 * over connections to simulated servers that get lost, are slow, or lose against another transaction.
 */
import { PgClient, PgTypes } from "@effect/sql-pg"
import { Effect, type Scope } from "effect"
import { SqlClient, type SqlConnection, SqlError } from "effect/sql"
import { Reactivity } from "effect/reactivity"
import { makeAppendEntries } from "../../src/shard/appendEntries.ts"
import { appendsAtOnce } from "../../src/shard/limits.ts"
import { readFirstPages, readPage } from "../../src/shard/readPage.ts"
import { sessionsOfShard } from "../../src/shard/sessions.ts"
import { makeTransactions } from "../../src/shard/transaction.ts"
import { rejectedAlone, ShardPool, ShardUnavailable } from "../../src/shard/ShardPool.ts"
import { classify, classifyRead } from "../../src/shard/transient.ts"
import type { Process } from "./Processes.ts"
import { Refused, type Row, type SimulatedPostgres, type Transaction } from "./SimulatedPostgres.ts"
import type { World } from "./World.ts"

/** As in the live pool. */
const operationTimeoutMillis = 45_000

/** A server, and what is wrong with it. */
export class SimulatedShard {
  readonly postgres: SimulatedPostgres
  readonly world: World
  down = false
  /** Added to each statement, in milliseconds. */
  slowMillis = 0
  readonly sessions = new Set<Session>()

  constructor(postgres: SimulatedPostgres, world: World) {
    this.postgres = postgres
    this.world = world
  }

  /** Stops at once: every open transaction is gone. */
  stop(): void {
    this.down = true
    this.world.trace(() => `${this.postgres.name} down`)
    for (const session of Array.from(this.sessions)) session.lost("now")
  }

  start(): void {
    this.down = false
    this.slowMillis = 0
    this.world.trace(() => `${this.postgres.name} up`)
  }
}

type Statement = "begin" | "commit" | "rollback" | "other"

const connectionError = (message: string) =>
  new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause: new Error(message) }) })

const serverError = (cause: Error) => new SqlError.SqlError({ reason: new SqlError.UnknownError({ cause }) })

/** One connection. */
class Session {
  readonly shard: SimulatedShard
  readonly process: Process
  readonly #rewrite: (text: string) => string
  #transaction: Transaction | undefined
  #committing = false
  #gone = false
  /** Statements that were sent and wait for the one that the server runs. */
  readonly #queue: Array<() => void> = []
  #isRunning = false
  /** On their way back; whatever their delays, they come in their order. */
  readonly #answers: Array<() => void> = []
  /** Tell the statements under way that the connection is lost. */
  readonly #onLost = new Set<() => void>()
  #cancelWait: (() => void) | undefined

  constructor(shard: SimulatedShard, process: Process, rewrite: (text: string) => string) {
    this.shard = shard
    this.process = process
    this.#rewrite = rewrite
    shard.sessions.add(this)
  }

  /** The connection is gone; the server notices now, or after a while in which the transaction keeps its locks. */
  lost(noticed: "now" | "later"): void {
    if (this.#gone) return
    this.#gone = true
    this.shard.sessions.delete(this)
    this.#cancelWait?.()
    const { prng } = this.shard.world
    const transaction = this.#transaction
    this.#transaction = undefined
    if (transaction?.open === true) {
      const { world } = this.shard
      const commits = this.#committing && !transaction.aborted && prng.chance(0.5)
      if (commits) this.shard.postgres.commit(transaction)
      else if (noticed === "now") this.shard.postgres.rollback(transaction)
      else {
        world.strike("vanished session keeps its locks")
        world.later(prng.between(1, 10_000), () => {
          if (transaction.open) this.shard.postgres.rollback(transaction)
        })
      }
      if (this.process.dead) {
        world.strike(
          commits ? "worker killed, open transaction committed" : "worker killed, open transaction rolled back",
        )
      }
    }
    this.#queue.length = 0
    for (const tell of this.#onLost) tell()
  }

  /** The server has done a statement: it goes on with the next one that was sent. */
  #next(): void {
    this.#isRunning = false
    const run = this.#queue.shift()
    if (run === undefined) return
    this.#isRunning = true
    run()
  }

  execute(text: string, parameters: ReadonlyArray<unknown>): Effect.Effect<ReadonlyArray<Row>, SqlError.SqlError> {
    const statement: Statement =
      text === "BEGIN" ? "begin" : text === "COMMIT" ? "commit" : text === "ROLLBACK" ? "rollback" : "other"
    return Effect.callback((resume) => {
      const { process, shard } = this
      const { postgres, world } = shard
      const { prng, weather } = world
      let settled = false
      const onLost = () => settle(Effect.fail(connectionError("connection terminated unexpectedly")))
      const settle = (result: Effect.Effect<ReadonlyArray<Row>, SqlError.SqlError>) => {
        if (settled) return
        settled = true
        this.#onLost.delete(onLost)
        if (!process.dead) resume(Effect.andThen(process.gate, result))
      }
      if (this.#gone) return settle(Effect.fail(connectionError("the connection is closed")))
      this.#onLost.add(onLost)
      const lose = () => this.lost(prng.chance(weather.keepsLocks) ? "later" : "now")
      const run = () => {
        let millis = world.statementLatency() + (shard.slowMillis > 0 ? prng.below(shard.slowMillis) : 0)
        if (prng.chance(weather.slowStatement)) {
          world.strike("shard slow")
          millis += prng.between(100, 20_000)
        }
        if (statement === "commit") {
          this.#committing = true
          const { atCommit } = process
          process.atCommit = undefined
          if (atCommit !== undefined) world.later(prng.below(millis + 2), atCommit)
        }
        // Before the server gets it.
        if (prng.chance(statement === "commit" ? weather.commitLost / 2 : weather.connectionLost / 2)) {
          return world.later(millis, () => {
            if (this.#gone) return
            world.strike(statement === "commit" ? "shard connection lost before commit" : "shard connection lost")
            this.#committing = false
            lose()
          })
        }
        world.later(millis, () => {
          if (this.#gone) return
          const finish = (result: ReadonlyArray<Row> | Refused) => {
            // After the server has done it.
            if (prng.chance(statement === "commit" ? weather.commitLost / 2 : weather.connectionLost / 2)) {
              world.strike(statement === "commit" ? "shard connection lost after commit" : "shard connection lost")
              return lose()
            }
            this.#next()
            this.#answers.push(() =>
              settle(result instanceof Refused ? Effect.fail(serverError(result)) : Effect.succeed(result)),
            )
            world.later(world.statementLatency(), () => this.#answers.shift()!())
          }
          if (statement === "begin") {
            this.#transaction = postgres.begin()
            return finish([])
          }
          const transaction = this.#transaction
          if (statement === "rollback" || (statement === "commit" && transaction?.aborted === true)) {
            if (transaction?.open === true) postgres.rollback(transaction)
            this.#transaction = undefined
            return finish([])
          }
          if (statement === "commit") {
            this.#committing = false
            if (transaction?.open === true) postgres.commit(transaction)
            this.#transaction = undefined
            world.trace(() => `${process.name} committed on ${postgres.name}`)
            return finish([])
          }
          if (transaction?.aborted === true) {
            return finish(new Refused("25P02", "current transaction is aborted"))
          }
          if (transaction !== undefined && prng.chance(weather.deadlock)) {
            world.strike("deadlock")
            transaction.aborted = true
            return finish(new Refused("40P01", "deadlock detected"))
          }
          if (transaction !== undefined && prng.chance(weather.serialisation)) {
            world.strike("serialisation failure")
            transaction.aborted = true
            return finish(new Refused("40001", "could not serialize access"))
          }
          const single = transaction ?? postgres.begin()
          const values = parameters.map((parameter) => (PgTypes.isParameter(parameter) ? parameter.value : parameter))
          this.#cancelWait = postgres.execute(single, this.#rewrite(text), values, (result) => {
            this.#cancelWait = undefined
            if (!this.#gone) finish(result)
          })
        })
      }
      if (this.#isRunning) this.#queue.push(run)
      else {
        this.#isRunning = true
        run()
      }
      // The server knows nothing of an interruption: it goes on until the connection is closed.
      return Effect.sync(() => {
        settled = true
        this.#onLost.delete(onLost)
      })
    })
  }

  close(): void {
    this.lost("now")
  }
}

const noStream = () => {
  throw new Error("the simulated PostgreSQL streams nothing")
}

/** A worker's way to one shard: a session for each operation, or one that lives in a scope. */
const makeConnect =
  (shard: SimulatedShard, process: Process, rewrite: (text: string) => string) =>
  (): Effect.Effect<SqlConnection.Connection, SqlError.SqlError, Scope.Scope> => {
    const { world } = shard
    const connect: Effect.Effect<Session, SqlError.SqlError> = Effect.callback((resume) => {
      const millis = shard.down ? world.prng.between(1, 5_000) : world.statementLatency()
      world.later(millis, () => {
        if (process.dead) return
        resume(
          Effect.andThen(
            process.gate,
            Effect.suspend(() =>
              shard.down
                ? Effect.fail(connectionError("connection refused"))
                : Effect.succeed(new Session(shard, process, rewrite)),
            ),
          ),
        )
      })
    })
    return Effect.map(
      Effect.acquireRelease(connect, (session) => Effect.sync(() => session.close()), { interruptible: true }),
      (session): SqlConnection.Connection => {
        const execute = (text: string, parameters: ReadonlyArray<unknown>) => session.execute(text, parameters)
        return {
          execute,
          executeRaw: execute,
          executeUnprepared: execute,
          executeStream: noStream,
          executeValues: noStream,
          executeValuesUnprepared: noStream,
        }
      },
    )
  }

/** A client whose statements run on what `acquirer` lends. */
const makeClient = Effect.fnUntraced(function* (
  acquirer: SqlConnection.Acquirer,
): Effect.fn.Return<PgClient.PgClient, never, Reactivity.Reactivity> {
  const client = yield* SqlClient.make({
    acquirer,
    transactionAcquirer: acquirer,
    compiler: PgClient.makeCompiler(),
    driver: "simulation",
    spanAttributes: [],
  })
  return Object.assign(client, {
    [PgClient.TypeId]: PgClient.TypeId,
    config: {},
    json: noStream,
    listen: noStream,
    notify: noStream,
  })
})

/** The service; it adds to the real statements what `ShardPoolLive` does. */
export const makeShardPool = Effect.fnUntraced(function* (
  shards: ReadonlyArray<SimulatedShard>,
  process: Process,
  rewrite: (text: string) => string,
): Effect.fn.Return<ShardPool["Service"], never, Reactivity.Reactivity | Scope.Scope> {
  const connects = shards.map((shard) => makeConnect(shard, process, rewrite))
  const clients = yield* Effect.forEach(connects, (connect) => makeClient(connect()))
  const reactivity = yield* Reactivity.Reactivity
  const appends = yield* Effect.forEach(connects, (connect) =>
    Effect.map(
      sessionsOfShard(() => undefined)(
        Effect.flatMap(connect(), (connection) => makeClient(Effect.succeed(connection))).pipe(
          Effect.map((sql) => ({ sql, isFit: Effect.void })),
          Effect.provideService(Reactivity.Reactivity, reactivity),
        ),
        appendsAtOnce,
      ),
      (sessions) => makeAppendEntries(makeTransactions(sessions)),
    ),
  )
  const indexes = new Map(shards.map((shard, index) => [shard.postgres.name, index]))
  const inTime = <A, E>(shard: string, operation: string, run: (index: number) => Effect.Effect<A, E>) =>
    Effect.timeoutOrElse(run(indexes.get(shard)!), {
      duration: operationTimeoutMillis,
      orElse: () =>
        Effect.fail(
          new ShardUnavailable({
            shard,
            operation,
            reason: "timeout",
            cause: new Error("the server did not answer in time"),
          }),
        ),
    })
  return ShardPool.of({
    append: (shard, batch) =>
      inTime(shard, "append", (index) =>
        appends[index]!(batch).pipe(
          Effect.mapError((error) => classify(shard, "append", error)),
          Effect.catchTag("BatchRejected", (error) => rejectedAlone(batch.length, error)),
        ),
      ),
    readFirstPages: (shard, query) =>
      inTime(shard, "read", (index) =>
        Effect.mapError(readFirstPages(clients[index]!, query), (error) => classifyRead(shard, error)),
      ),
    readPage: (shard, query) =>
      inTime(shard, "read", (index) =>
        Effect.mapError(readPage(clients[index]!, query), (error) => classifyRead(shard, error)),
      ),
    health: Effect.succeed([]),
    usage: () => [],
  })
})
