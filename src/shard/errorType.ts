/** What a shard's errors are called in traces. */
import { SqlError } from "effect/sql"
import { BatchRejected, ShardUnavailable } from "./ShardPool.ts"
import { sqlStateOf } from "./transient.ts"

/** A SQLSTATE or a word, never a message, which may cite a value; `undefined` for an error of another kind. */
export const errorType = (error: unknown): string | undefined => {
  if (error instanceof ShardUnavailable) return error.reason
  if (error instanceof BatchRejected) return error.sqlState
  return SqlError.isSqlError(error) ? (sqlStateOf(error) ?? error.reason._tag) : undefined
}
