/**
 * Transactions whose statements are pipelined: those that need nothing of each other's results are sent at once and cost one
 * round trip together.
 *
 * Each transaction has a session to itself. After a failure it is rolled back; where that does not succeed in time, or the
 * transaction was interrupted, its session is closed: the server ends what is open. So a transaction can be given up at any
 * point, also where the server is gone and nobody told us. Whether an interrupted COMMIT succeeded is unknown, as after any
 * lost connection.
 */
import type { PgClient, PgConnection } from "@effect/sql-pg"
import { Cause, Effect, Exit, Fiber, Scheduler } from "effect"
import type { SqlError } from "effect/sql"
import { rollbackSeconds } from "./limits.ts"
import type { Session, Sessions } from "./sessions.ts"
import { isSessionFault, sqlErrorOf, withSqlState } from "./transient.ts"

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

/** What PostgreSQL did when it was told to commit. */
const isResult = (value: unknown): value is PgConnection.Result =>
  typeof value === "object" && value !== null && "command" in value

const rolledBack = withSqlState("40000", "COMMIT rolled back an aborted transaction")

const transactionOn = (sql: PgClient.PgClient): Transaction => ({
  sql,
  begin: Effect.asVoid(sql`BEGIN`),
  commit: Effect.flatMap(sql`COMMIT`.raw, (done) =>
    isResult(done) && done.command === "ROLLBACK" ? Effect.fail(rolledBack) : Effect.void,
  ),
})

const rollback = ({ discard, sql }: Session): Effect.Effect<void> =>
  sql`ROLLBACK`.pipe(
    Effect.timeout(`${rollbackSeconds} seconds`),
    Effect.catch(() => Effect.sync(discard)),
  )

/** Is nothing left to roll back: was it interrupted, so that it is given up, or has its session ended? */
const isOver = (cause: Cause.Cause<unknown>): boolean => {
  const error = sqlErrorOf(cause)
  return Cause.hasInterrupts(cause) || (error !== undefined && isSessionFault(error))
}

export const makeTransactions =
  (sessions: Sessions): InTransaction =>
  (body) =>
    sessions
      .use((session) =>
        Effect.onExit(body(transactionOn(session.sql)), (exit) =>
          Exit.isSuccess(exit) || isOver(exit.cause) ? Effect.void : Effect.interruptible(rollback(session)),
        ),
      )
      .pipe(Effect.withSpan("sql.transaction", { kind: "internal" }, { captureStackTrace: false }))
