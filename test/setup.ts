/** Around the whole test run: a folder for what several test files can share, and Node's cache for the workers they start. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export default function setup(): () => void {
  const folder = mkdtempSync(join(tmpdir(), "objectlog-test-run-"))
  // As root, PostgreSQL runs as another user.
  chmodSync(folder, 0o755)
  const templates = join(folder, "templates")
  mkdirSync(templates)
  process.env["OBJECTLOG_TEST_TEMPLATES"] = templates
  process.env["NODE_COMPILE_CACHE"] = join(folder, "compiled")
  return () => rmSync(folder, { recursive: true, force: true })
}
