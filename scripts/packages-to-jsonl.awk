# Turns the Debian package index (`apt-cache dumpavail`) into one JSON object a line.
#
# A record is a paragraph of `Field: value` lines; a line that begins with a blank goes on
# with the field before it. Plain POSIX awk, so that any Debian machine can run it.

BEGIN { RS = ""; FS = "\n" }

function quoted(text) {
    gsub(/\\/, "\\\\", text)
    gsub(/"/, "\\\"", text)
    gsub(/\t/, "\\t", text)
    gsub(/\r/, "\\r", text)
    gsub(/\n/, "\\n", text)
    gsub(/[\001-\037\177]/, " ", text)
    return "\"" text "\""
}

function add_field() {
    if (name == "") return
    object = object (object == "" ? "" : ",") quoted(name) ":" quoted(value)
    name = ""
}

{
    object = ""
    name = ""
    for (i = 1; i <= NF; i++) {
        if ($i ~ /^[ \t]/) {
            value = value "\n" substr($i, 2)
            continue
        }
        add_field()
        colon = index($i, ":")
        if (colon == 0) continue
        name = substr($i, 1, colon - 1)
        value = substr($i, colon + 1)
        sub(/^[ \t]+/, "", value)
    }
    add_field()
    if (object != "") print "{" object "}"
}
