/**
 * Transactions whose statements are pipelined: those that need nothing of each other's results are sent at once and cost one
 * round trip together.
 *
 * Each transaction has a connection to itself, which is kept for the next one. After a failure it is rolled back; where that
 * does not succeed in time, or the transaction was interrupted, its connection is closed: the server ends what is open. So
 * a transaction can be given up at any point, also where the server is gone and nobody told us. Whether an interrupted
 * COMMIT succeeded is unknown, as after any lost connection.
 */
import type { PgClient, PgConnection } from "@effect/sql-pg"
import { Cause, Effect, Exit, Fiber, Scheduler, Scope } from "effect"
import { SqlError } from "effect/sql"

/** More than a server that answers needs: it waits 5 s for a lock. */
const rollbackTimeout = "10 seconds"

/** A client of one connection that pipelines what is sent to it at the same time; the connection lives in the scope. */
export type Connect = Effect.Effect<PgClient.PgClient, SqlError.SqlError, Scope.Scope>

/** What the body of a transaction works with. It sends `begin` before all else, and `commit` at its end. */
export interface Transaction {
  readonly sql: PgClient.PgClient
  readonly begin: Effect.Effect<void, SqlError.SqlError>
  readonly commit: Effect.Effect<void, SqlError.SqlError>
}

export type InTransaction = <A, E>(
  body: (transaction: Transaction) => Effect.Effect<A, E>,
) => Effect.Effect<A, E | SqlError.SqlError>

type Results<All extends ReadonlyArray<Effect.Effect<unknown, SqlError.SqlError>>> = {
  -readonly [Key in keyof All]: Effect.Success<All[Key]>
}

/**
 * Sends statements at once; the server runs them one after the other. They are sent in their order, whatever the scheduler
 * does (what would be run before its BEGIN would be a transaction of its own): each has a fiber that runs at once, without
 * a pause, until it waits for its answer. Fails with the first failure in that order.
 */
export const pipelined = <const All extends ReadonlyArray<Effect.Effect<unknown, SqlError.SqlError>>>(
  all: All,
): Effect.Effect<Results<All>, SqlError.SqlError> =>
  Effect.forEach(all, (statement: Effect.Effect<unknown, SqlError.SqlError>) =>
    Effect.forkChild(statement, { startImmediately: true }),
  ).pipe(
    Effect.provideService(Scheduler.PreventSchedulerYield, true),
    Effect.flatMap((fibers) => Effect.onInterrupt(Fiber.joinAll(fibers), () => Fiber.interruptAll(fibers))),
    Effect.map((results) => results as Results<All>),
  )

interface Connection extends Transaction {
  readonly scope: Scope.Closeable
}

/** What PostgreSQL did when it was told to commit. */
const isResult = (value: unknown): value is PgConnection.Result =>
  typeof value === "object" && value !== null && "command" in value

const rolledBack = new SqlError.SqlError({
  reason: new SqlError.UnknownError({
    cause: new Error("COMMIT rolled back an aborted transaction"),
    message: "COMMIT rolled back an aborted transaction",
    operation: "commit",
  }),
})

const makeConnection = (sql: PgClient.PgClient, scope: Scope.Closeable): Connection => ({
  sql,
  scope,
  begin: Effect.asVoid(sql`BEGIN`),
  commit: Effect.flatMap(sql`COMMIT`.raw, (done) =>
    isResult(done) && done.command === "ROLLBACK" ? Effect.fail(rolledBack) : Effect.void,
  ),
})

/** Keeps as many connections as there were transactions at the same time, until the scope is closed. */
export const makeTransactions = Effect.fnUntraced(function* (
  connect: Connect,
): Effect.fn.Return<InTransaction, never, Scope.Scope> {
  const idle: Array<Connection> = []
  let closed = false
  yield* Effect.addFinalizer((exit) => {
    closed = true
    return Effect.forEach(idle.splice(0), ({ scope }) => Scope.close(scope, exit), { discard: true })
  })

  const open: Effect.Effect<Connection, SqlError.SqlError> = Effect.flatMap(Scope.make(), (scope) =>
    connect.pipe(
      Effect.provideService(Scope.Scope, scope),
      Effect.map((sql) => makeConnection(sql, scope)),
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause))),
    ),
  )

  const rollback = ({ sql }: Connection): Effect.Effect<boolean> =>
    sql`ROLLBACK`.pipe(
      Effect.as(true),
      Effect.timeout(rollbackTimeout),
      Effect.catch(() => Effect.succeed(false)),
    )

  return <A, E>(body: (transaction: Transaction) => Effect.Effect<A, E>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function* () {
        const connection = idle.pop() ?? (yield* restore(open))
        const exit = yield* Effect.exit(restore(body(connection)))
        let isClean = Exit.isSuccess(exit)
        if (Exit.isFailure(exit) && !Cause.hasInterrupts(exit.cause)) {
          const ended = yield* Effect.exit(restore(rollback(connection)))
          isClean = Exit.isSuccess(ended) && ended.value
        }
        if (isClean && !closed) idle.push(connection)
        else yield* Scope.close(connection.scope, Exit.void)
        return yield* exit
      }),
    ).pipe(Effect.withSpan("sql.transaction", { kind: "internal" }, { captureStackTrace: false }))
})
