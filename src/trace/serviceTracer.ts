/**
 * A tracer whose spans say what the OpenTelemetry conventions for databases ask for, and nothing that is not for the eyes
 * of whoever reads traces.
 *
 * Effect's SQL client names a span by its database and knows no operation. And a span that fails gets the whole cause with
 * messages and stacks: a database's message may cite a value. Here it gets `error.type`, a SQLSTATE or a word.
 */
import { Cause, Exit, Schema, Tracer } from "effect"

/** How a span ends that failed. */
export class SpanFailed extends Schema.TaggedError<SpanFailed>()("SpanFailed", { errorType: Schema.String }) {
  override get message(): string {
    return this.errorType
  }
}

/** What an error says of itself in a span's `error.type`, a SQLSTATE or a word; `undefined` for an error of another kind. */
export type ErrorType = (error: unknown) => string | undefined

const errorTypeOf = (cause: Cause.Cause<unknown>, errorType: ErrorType): string => {
  const error = Cause.squash(cause)
  if (error instanceof SpanFailed) return error.errorType
  const known = errorType(error)
  if (known !== undefined) return known
  if (typeof error === "object" && error !== null && "_tag" in error) return String(error._tag)
  return error instanceof Error ? error.name : "_OTHER"
}

const failed = (errorType: string): SpanFailed => {
  const failure = new SpanFailed({ errorType })
  // Where this is called is of no use to anybody.
  failure.stack = errorType
  return failure
}

interface Statement {
  readonly text: string
  readonly operation: string
}

/** The statements of this program are a fixed few; their texts have parameters only, no values. */
const statements = new Map<string, Statement>()
const statementsMax = 100

const statementOf = (sql: string): Statement => {
  const known = statements.get(sql)
  if (known !== undefined) return known
  const text = sql.trim().replace(/\s+/g, " ")
  const statement = {
    text,
    operation: /\b(?:insert|update|delete|select|begin|commit|rollback)\b/i.exec(text)?.[0].toUpperCase() ?? "",
  }
  if (statements.size < statementsMax) statements.set(sql, statement)
  return statement
}

/** The pool knows the shard's address; the client, where it was given a URL, does not. */
const firstCounts = new Set(["db.namespace", "server.address", "server.port"])

export const make = (tracer: Tracer.Tracer, errorType: ErrorType): Tracer.Tracer =>
  Tracer.make({
    span: (options) => {
      const span = tracer.span(options)
      const attribute = span.attribute.bind(span)
      const end = span.end.bind(span)
      span.attribute = (key, value) => {
        if (key === "effect.sql.method" || (firstCounts.has(key) && span.attributes.has(key))) return
        if (key !== "db.query.text") return attribute(key, value)
        const { operation, text } = statementOf(String(value))
        attribute(key, text)
        if (operation === "") return
        attribute("db.operation.name", operation)
        const named: { name: string } = span
        named.name = `${operation} ${String(span.attributes.get("db.namespace"))}`
      }
      span.end = (endTime, exit) => {
        if (Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)) return end(endTime, exit)
        const type = errorTypeOf(exit.cause, errorType)
        attribute("error.type", type)
        end(endTime, Exit.fail(failed(type)))
      }
      return span
    },
  })
