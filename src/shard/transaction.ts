/**
 * A transaction that can be given up at any point.
 *
 * The client's `withTransaction` does not let go of BEGIN, COMMIT and ROLLBACK: they can't be interrupted. Where the server
 * is gone and nobody told us (its machine lost power, a firewall forgot the connection), they wait for as long as TCP does,
 * a quarter of an hour or for ever, and no time limit around them helps. Here an interrupted statement gets a few seconds to
 * end; then its connection is dropped. Whether an interrupted COMMIT succeeded is unknown, as after any lost connection.
 */
import type { PgClient, PgConnection } from "@effect/sql-pg"
import { Effect } from "effect"
import { SqlError } from "effect/sql"

/** More than the client needs to find that a connection does not answer, and to drop it. */
const rollbackTimeout = "10 seconds"

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

/** Runs statements of `sql` in one transaction; everything but a success is rolled back. */
export const inTransaction =
  (sql: PgClient.PgClient) =>
  <A, E, R>(body: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
    Effect.scoped(
      Effect.gen(function* () {
        const connection = yield* sql.reserve
        // A connection that is dead fails this at once. What it leaves open is rolled back by the server.
        const rollback = Effect.interruptible(connection.executeRaw("ROLLBACK", [])).pipe(
          Effect.timeoutOption(rollbackTimeout),
          Effect.ignore,
        )
        return yield* connection.executeRaw("BEGIN", []).pipe(
          Effect.andThen(Effect.provideService(body, sql.transactionService, [connection, 0])),
          Effect.tap(() =>
            Effect.flatMap(connection.executeRaw("COMMIT", []), (done) =>
              isResult(done) && done.command === "ROLLBACK" ? Effect.fail(rolledBack) : Effect.void,
            ),
          ),
          Effect.onError(() => rollback),
        )
      }),
    ).pipe(Effect.withSpan("sql.transaction", { kind: "internal" }))
