import { homedir } from "node:os"
import { join } from "node:path"

/** A user who is only a number has no home. @returns {string} */
const home = () => {
  try {
    return homedir()
  } catch {
    return process.cwd()
  }
}

/**
 * Where this program keeps what it can make again, below the user's own folder: nobody else can put something there.
 *
 * @returns {string}
 */
export const cacheFolder = () => join(process.env["XDG_CACHE_HOME"] || join(home(), ".cache"), "objectlog")
