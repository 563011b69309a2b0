"""What is stored beside the jobs: settings of queues, schedules and topics."""
