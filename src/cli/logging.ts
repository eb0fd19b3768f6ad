/**
 * Logs go to stderr, one line each: readable on a terminal, a JSON object otherwise. Where there is a span, its ids are
 * there, so that a line leads to its trace. What a message says is not logged at any level.
 */
import { Cause, Context, Layer, Logger, References, Tracer } from "effect"
import type { LogLevel, Settings } from "../config/Config.ts"
import { messageLine, messageLines } from "./terminal.ts"

interface Line {
  readonly timestamp: string
  readonly level: string
  readonly message: string
  readonly trace_id?: string
  readonly span_id?: string
  readonly annotations?: Readonly<Record<string, unknown>>
  /** What failed, with its stack. */
  readonly cause?: string
}

/** JSON has no big numbers; their digits are what counts. */
const exact = (_: string, value: unknown): unknown => (typeof value === "bigint" ? String(value) : value)

const text = (value: unknown): string =>
  typeof value === "string" || typeof value === "bigint"
    ? String(value)
    : value instanceof Error
      ? value.message
      : (JSON.stringify(value, exact) ?? String(value))

/** What a line says, whatever it looks like. */
const line = ({ cause, date, fiber, logLevel, message }: Logger.Options<unknown>): Line => {
  const span = Context.getOrUndefined(fiber.context, Tracer.ParentSpan)
  const annotations = fiber.getRef(References.CurrentLogAnnotations)
  return {
    timestamp: date.toISOString(),
    level: logLevel.toLowerCase(),
    message: (Array.isArray(message) ? message : [message]).map(text).join(" "),
    ...(span?.sampled !== true ? {} : { trace_id: span.traceId, span_id: span.spanId }),
    ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
    ...(cause.reasons.length === 0 ? {} : { cause: Cause.pretty(cause) }),
  }
}

/** A JSON object on one line. */
export const jsonLine: Logger.Logger<unknown, string> = Logger.make((options) => JSON.stringify(line(options), exact))

/** For a person on a terminal: time of day, level, message, and what else there is. */
export const readableLine: Logger.Logger<unknown, string> = Logger.make((options) => {
  const { annotations = {}, cause, level, message, span_id, timestamp, trace_id } = line(options)
  const more = Object.entries({ ...annotations, ...(trace_id === undefined ? {} : { trace_id, span_id }) })
  const said = [
    `${timestamp.slice(11, 23)} ${level.padEnd(5)} ${message}`,
    ...more.map(([name, value]) => `${name}=${text(value)}`),
  ].join(" ")
  // Both may cite what a server or a client sent.
  return cause === undefined ? messageLine(said, true) : `${messageLine(said, true)} \n${messageLines(cause, true)}`
})

const minimum = { debug: "Debug", info: "Info", warn: "Warn", error: "Error", off: "None" } as const satisfies Record<
  LogLevel,
  string
>

export const loggerLayer = ({ logLevel }: Pick<Settings, "logLevel">) =>
  Layer.merge(
    Logger.layer([Logger.withConsoleError(process.stderr.isTTY ? readableLine : jsonLine)]),
    Layer.succeed(References.MinimumLogLevel, minimum[logLevel]),
  )
