// Creates the seven roles of roles/*.json that everybody needs, or brings them up to date.
//
//   JOBS_DATABASE=shop mongosh "$ADMIN_URI" deploy/mongodb/create-roles.js
//
// They are made in the database admin: only there may a role reach into another one.
// JOBS_COLLECTION is for jobs that are not in the collection "jobs".
//
// OPLOG_WINDOW=yes makes an eighth, streamqueueOplogWindow. Whoever has it reads every write of the
// cluster, password verifiers included: README.md says what it is for, and what to do instead.

const fs = require("fs");
const path = require("path");

const database = process.env.JOBS_DATABASE;
const collection = process.env.JOBS_COLLECTION || "jobs";
if (!database) {
  print("Set JOBS_DATABASE to the name of the database that the jobs are in.");
  quit(2);
}

const admin = db.getSiblingDB("admin");
const names = ["producer", "publisher", "consumer", "operator", "scheduler", "setup", "exporter"];
if (process.env.OPLOG_WINDOW === "yes") {
  names.push("oplog-window");
}
for (const name of names) {
  const role = JSON.parse(fs.readFileSync(path.join(__dirname, "roles", `${name}.json`), "utf8"));
  for (const { resource } of role.privileges) {
    if (resource.db === "JOBS_DATABASE") {
      resource.db = database;
      resource.collection = resource.collection.replace(/^jobs/, collection);
    }
  }
  const { createRole, ...rest } = role;
  const isThere = admin.runCommand({ rolesInfo: createRole }).roles.length > 0;
  const reply = admin.runCommand(isThere ? { updateRole: createRole, ...rest } : role);
  if (!reply.ok) {
    print(`${createRole}: ${reply.errmsg}`);
    quit(1);
  }
  print(`${createRole}: ${isThere ? "updated" : "created"} for ${database}.${collection}`);
}
