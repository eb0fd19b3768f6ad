/** Logs go to stderr: readable lines on a terminal, JSON otherwise; debug level with MODE=debug. */
import { Layer, Logger, References } from "effect"
import type { Settings } from "../Config.ts"

const toStderr = (logger: Logger.Logger<unknown, string>) => Logger.withConsoleError(logger)

export const loggerLayer = (settings: Pick<Settings, "debug">) =>
  Layer.merge(
    Logger.layer([toStderr(process.stderr.isTTY ? Logger.formatLogFmt : Logger.formatJson)]),
    Layer.succeed(References.MinimumLogLevel, settings.debug ? "Debug" : "Info"),
  )
