/**
 * Which database failures another attempt may cure, decided by SQLSTATE alone: what `SqlError.isRetryable` says files
 * shutdowns, full disks and exhausted connections under "unknown, not retryable".
 */
import { PgProtocol } from "@effect/sql-pg"
import { Cause, Effect } from "effect"
import { SqlError } from "effect/sql"
import { BatchRejected, ReadRejected, ShardUnavailable } from "./ShardPool.ts"

/** SQLSTATE 22P03, for a value that the client itself cannot encode: the same batch can never be sent. */
const cannotEncode = "22P03"

/** What the client says of it, and of no failure of the connection: one that it cannot decode is of that kind. */
const encodingFailed = "PgConnection: Failed to encode query"

/** SQLSTATE of a row whose unique key exists. */
export const uniqueViolation = "23505"

/** The SQLSTATE of a failure; `undefined` where the server never answered. */
export const sqlStateOf = (error: SqlError.SqlError): string | undefined => {
  const cause: unknown = error.reason.cause
  if (typeof cause !== "object" || cause === null) return undefined
  if (error.reason.message === encodingFailed) return cannotEncode
  return "code" in cause && typeof cause.code === "string" && /^[0-9A-Z]{5}$/.test(cause.code) ? cause.code : undefined
}

/**
 * Is it the data's fault? Data exception (22), constraint (23), program limit (54, such as an index row that is too
 * large). Everything else is the server's or the operator's: also 42, since a missing table is not the message's fault,
 * 25006 of a standby and 28 while a password is being changed.
 */
export const isDataFault = (sqlState: string | undefined): boolean =>
  sqlState !== undefined && /^(?:22|23|54)/.test(sqlState)

/** A session that answers, and is of no use: its server is read-only, its settings are gone, it is not the shard's. */
class SessionUnfit extends Error {
  /** SQLSTATE or a word. */
  readonly reason: string

  constructor(reason: string, message: string) {
    super(message)
    this.reason = reason
  }
}

export const unfit = (reason: string, message: string): SqlError.SqlError =>
  new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause: new SessionUnfit(reason, message) }) })

/** A failure of ours, with the SQLSTATE that fits it. */
export const withSqlState = (sqlState: string, message: string): SqlError.SqlError =>
  new SqlError.SqlError({
    reason: new SqlError.UnknownError({ cause: Object.assign(new Error(message), { code: sqlState }), message }),
  })

/**
 * Is it the session's fault, so that the next statement on it would fail too? The server is read-only or in recovery
 * (25006), it has ended the session (08, 57P01 … 57P05, 25P03, 25P04), or lost what the session had prepared (26000); or
 * no server answered at all.
 */
export const isSessionFault = (error: SqlError.SqlError): boolean => {
  const sqlState = sqlStateOf(error)
  return sqlState === undefined || /^(?:08...|57P0[1-5]|25006|25P0[34]|26000)$/.test(sqlState)
}

/** The database's failure among all that ended an operation. */
export const sqlErrorOf = (cause: Cause.Cause<unknown>): SqlError.SqlError | undefined => {
  for (const reason of cause.reasons) {
    const error = Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : undefined
    if (SqlError.isSqlError(error)) return error
  }
  return undefined
}

/** May the transaction be repeated at once? It lost against another one, and was rolled back whole. */
export const isConflict = (error: SqlError.SqlError): boolean => {
  const sqlState = sqlStateOf(error)
  return sqlState === "40001" || sqlState === "40P01"
}

/**
 * Does a read fail for a reason of its own? A data fault, a damaged row or index (XX001, XX002), the statement time-out; or an
 * answer that the client can't take.
 */
const isOfTheRead = (sqlState: string | undefined, cause: unknown): boolean =>
  sqlState === undefined
    ? cause instanceof PgProtocol.ParseError
    : isDataFault(sqlState) || /^(?:XX00[12]|57014)$/.test(sqlState)

/** The failure of a read as the pipeline sees it. */
export const classifyRead = (shard: string, error: SqlError.SqlError): ShardUnavailable | ReadRejected => {
  const sqlState = sqlStateOf(error)
  return isOfTheRead(sqlState, error.reason.cause)
    ? new ReadRejected({ shard, reason: sqlState ?? "unreadable", cause: describe(error) })
    : unavailable(shard, "read", error)
}

/** The failure of an append as the lanes see it. */
export const classify = (
  shard: string,
  operation: string,
  error: SqlError.SqlError,
): ShardUnavailable | BatchRejected => {
  const sqlState = sqlStateOf(error)
  return sqlState !== undefined && isDataFault(sqlState)
    ? new BatchRejected({ shard, sqlState, cause: describe(error) })
    : unavailable(shard, operation, error)
}

export const unavailable = (shard: string, operation: string, error: SqlError.SqlError): ShardUnavailable =>
  new ShardUnavailable({ shard, operation, reason: reasonOf(error), cause: describe(error) })

/**
 * `Die(SqlError)` -> failure. A connection that is lost inside `withTransaction` fails the roll-back too, and that
 * arrives as a defect, which no typed retry would see.
 */
export const defectAsFailure = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
  Effect.catchCause(self, (cause): Effect.Effect<never, E | SqlError.SqlError> => {
    if (Cause.hasInterrupts(cause)) return Effect.failCause(cause)
    for (const reason of cause.reasons) {
      if (Cause.isDieReason(reason) && SqlError.isSqlError(reason.defect)) return Effect.fail(reason.defect)
    }
    return Effect.failCause(cause)
  })

const reasonOf = (error: SqlError.SqlError): string => {
  const sqlState = sqlStateOf(error)
  if (sqlState !== undefined) return sqlState
  if (error.reason.cause instanceof SessionUnfit) return error.reason.cause.reason
  return error.reason._tag === "ConnectionError" ? "connection" : "unknown"
}

/** Where more is said, for an operator. */
const advice: Readonly<Record<string, string>> = { "42501": " (docs/operating.md: Rights)" }

/**
 * A cause that is only a text. The original holds statement parameters, the failing row and perhaps the configuration,
 * which must not reach a log or a span.
 */
const describe = (error: SqlError.SqlError): Error => {
  const cause: unknown = error.reason.cause
  const text = cause instanceof Error || hasMessage(cause) ? cause.message : ""
  const said = (text === "" ? error.reason.message : text).replace(/\/\/[^@/\s]*@/g, "//<redacted>@")
  const described = new Error(`${said}${advice[sqlStateOf(error) ?? ""] ?? ""}`)
  // The stack says where this function is called, which is of no use to anybody.
  described.stack = `${described.name}: ${described.message}`
  return described
}

const hasMessage = (value: unknown): value is { readonly message: string } =>
  typeof value === "object" && value !== null && "message" in value && typeof value.message === "string"
