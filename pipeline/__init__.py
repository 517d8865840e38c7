"""What every stage shares: the workspace's layout, the row format, configs, safe writing, errors
for people.
"""
