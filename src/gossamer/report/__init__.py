"""What result lines say: tables, figures and pages; and the jobs that end with one."""
